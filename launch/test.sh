#!/usr/bin/env bash
# The tests: a fast default, everything with --all; other arguments go to pytest.
#   bash launch/test.sh [--all] [pytest args]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv "test,torch"
cd "$ROOT"
selected="not slow and not multidevice"
arguments=()
for argument in "$@"; do
  if [ "$argument" = "--all" ]; then
    selected="" # an empty expression selects everything
  else
    arguments+=("$argument")
  fi
done
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "tests"
exec "$VENV/bin/python" -m pytest -m "$selected" ${arguments[@]+"${arguments[@]}"}

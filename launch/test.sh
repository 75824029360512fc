#!/usr/bin/env bash
# The tests: a fast default, everything with --all; other arguments go to pytest.
#   bash launch/test.sh [--all] [pytest args]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv "test,torch"
cd "$ROOT"
selection=(-m "not slow and not multidevice and not multiprocess")
if [ "${1:-}" = "--all" ]; then
  selection=()
  shift
fi
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "tests"
exec "$VENV/bin/python" -m pytest "${selection[@]}" "$@"

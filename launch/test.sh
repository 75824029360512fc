#!/usr/bin/env bash
# The tests: a fast default, everything with --all; other arguments go to pytest.
#   bash launch/test.sh [--all] [pytest args]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Exports promise to load in this version as well as in the installed one.
install_oldest_transformers() {
  local folder="$ROOT/.cache/transformers_oldest"
  [ -e "$folder/.installed" ] && return
  say "installing the oldest transformers into $folder"
  rm -rf "$folder"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target="$folder" transformers==4.46.3 tokenizers==0.20.3 huggingface_hub==0.36.2 ||
    fail "pip could not install transformers 4.46.3; is the network (PyPI) reachable?"
  touch "$folder/.installed"
}

ensure_venv "test,torch"
cd "$ROOT"
selected="not slow and not multidevice"
arguments=()
for argument in "$@"; do
  if [ "$argument" = "--all" ]; then
    selected="" # an empty expression selects everything
    install_oldest_transformers
  else
    arguments+=("$argument")
  fi
done
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "tests"
exec "$VENV/bin/python" -m pytest -m "$selected" ${arguments[@]+"${arguments[@]}"}

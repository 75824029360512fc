#!/usr/bin/env bash
# Runs a training command on this machine, in one process or several, and again when it asks for it.
#   bash launch/local.sh [--num_processes=N] [--devices_per_process=K] [--dry-run] -- \
#     python -m glm_jax.train --config=configs/glm_tiny.py --config.data.dir=data --workdir=run
# `python` is that of the clone's virtual environment. launch/README.md has the other options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

is_dry_run() {
  local argument
  for argument in "$@"; do
    case "$argument" in
      --) return 1 ;;
      --dry-run | --dry_run) return 0 ;;
    esac
  done
  return 1
}

if is_dry_run "$@"; then # nothing is installed either
  check_python
  exec "$PYTHON" "$ROOT/launch/supervise.py" "$@"
fi
ensure_venv "" >&2
export PATH="$VENV/bin:$PATH"
exec python "$ROOT/launch/supervise.py" "$@"

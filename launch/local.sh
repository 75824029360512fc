#!/usr/bin/env bash
# Runs a training command on this machine, in one process or several, and again when it asks for it.
#   bash launch/local.sh [--num_processes=N] [--devices_per_process=K] [--dry-run] -- \
#     python -m glm_jax.train --config=configs/glm_tiny.py --config.data.dir=data --workdir=run
# `python` is that of the clone's virtual environment. launch/README.md has the other options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv "" >&2
export PATH="$VENV/bin:$PATH"
exec python "$ROOT/launch/supervise.py" "$@"

#!/usr/bin/env bash
# From nothing to a verified export: corpus, tokenizer, pretraining, filled blanks, PyTorch model.
#   bash launch/quickstart.sh [--corpus=F ...] [--workdir=D]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_venv ""
exec "$VENV/bin/python" "$ROOT/launch/quickstart.py" "$@"

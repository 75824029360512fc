#!/usr/bin/env bash
# What a container runs: its command under a supervisor, with the supervisor's options before a --.
#   docker run IMAGE python -m glm_jax.train --config=... --workdir=...
#   docker run IMAGE --max_restarts=5 -- python -m glm_jax.train --config=... --workdir=...
# Which host of several this is, the trainer finds out from its surroundings (docs/hosts.md).
set -euo pipefail
case "${1:-}" in
  -*) ;;
  *) set -- -- "$@" ;;
esac
exec python "$(dirname "${BASH_SOURCE[0]}")/supervise.py" "$@"

#!/usr/bin/env bash
# The tests: a fast default, everything with --all; other arguments go to pytest.
#   bash launch/test.sh [--all] [pytest args]
# --all runs in two processes; `--all -n 0` in one, which --pdb needs and -s to see what is printed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Installs pinned packages, and nothing that they depend on, into a folder of their own, once.
install_beside() { # name of the folder, what it is, packages
  local folder="$ROOT/.cache/$1" what="$2"
  shift 2
  [ -e "$folder/.installed" ] && return
  say "installing $what into $folder"
  rm -rf "$folder"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target="$folder" "$@" ||
    fail "pip could not install $what; is the network (PyPI) reachable?"
  touch "$folder/.installed"
}

# Exports promise to load in this version as well as in the installed one.
install_oldest_transformers() {
  install_beside transformers_oldest "the oldest transformers" \
    transformers==4.46.3 tokenizers==0.20.3 huggingface_hub==0.36.2
}

# Beam declares upper bounds below the pinned protobuf and pyarrow, with which it runs. So it is
# installed beside them, without its dependencies but for those that nothing else brings.
install_beam() {
  install_beside beam "Apache Beam" \
    apache-beam==2.77.0 beartype==0.22.9 cffi==2.1.1 cryptography==50.0.2 \
    fastavro==1.13.1 fasteners==0.20 grpcio==1.85.1 httplib2==0.32.1 jsonpickle==4.1.4 \
    objsize==0.7.1 proto-plus==1.29.0 pycparser==3.12 pyparsing==3.3.3 \
    python-dateutil==2.9.0.post0 pytz==2026.6 zstandard==0.25.0
}

# The compiler for TPUs that goes with the pinned jax (its extra `tpu`). Beside the other packages, as
# with it among them jax would look for TPUs in every test.
install_libtpu() {
  (install_beside libtpu "libtpu, the compiler for TPUs" libtpu==0.0.42.1) ||
    say "without libtpu the tests that compile for TPUs are skipped"
}

ensure_venv "test,torch"
cd "$ROOT"
selected="not slow and not multidevice and not aot"
arguments=()
for argument in "$@"; do
  if [ "$argument" = "--all" ]; then
    selected="" # an empty expression selects everything
    # Each process takes a half of the files in order, and then tests of the other: files stay whole
    # but where work is taken over, and a long last file does not keep one process waiting.
    arguments=(-n 2 --dist worksteal ${arguments[@]+"${arguments[@]}"})
    install_oldest_transformers
    install_beam
    install_libtpu
  else
    arguments+=("$argument")
  fi
done
say "lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
say "tests"
exec "$VENV/bin/python" -m pytest -m "$selected" ${arguments[@]+"${arguments[@]}"}

# Shared by the scripts of this folder: the virtual environment and its checks.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

say() { printf '\n== %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

check_python() {
  PYTHON="${PYTHON:-python3}"
  command -v "$PYTHON" >/dev/null || fail "$PYTHON is not installed; glm-jax needs Python 3.11 or newer"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$PYTHON" --version) is too old; glm-jax needs Python 3.11 or newer (set PYTHON=...)"
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$PYTHON has no venv module; on Debian and Ubuntu: apt install python3-venv"
}

check_disk() { # gigabytes
  local free_kb
  free_kb="$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')"
  [ "$free_kb" -ge "$(($1 * 1024 * 1024))" ] ||
    fail "$ROOT has $((free_kb / 1024)) MiB free, $1 GiB are needed"
}

# An editable install knows the folder it was made in, so a moved clone is installed again.
what_is_installed() {
  echo "$ROOT"
  cat "$ROOT/setup.py" "$ROOT/constraints.txt"
}

# On Linux the build of PyTorch on PyPI brings gigabytes of CUDA along; the tests need none of it.
install_cpu_torch() {
  [ "$(uname -s)" = Linux ] || return 0
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
    "$(grep '^torch==' "$ROOT/constraints.txt")" ||
    say "no CPU build of PyTorch could be fetched; PyPI's has CUDA and needs about 8 GiB"
}

# Installs glm-jax with the given extras ("" for none) at the pinned versions, once.
ensure_venv() {
  local extras="$1" stamp
  check_python
  stamp="$VENV/.installed-$(what_is_installed | cksum | cut -d' ' -f1)-$extras"
  if [ -e "$stamp" ]; then
    say "using $VENV"
    return
  fi
  check_disk 4
  say "installing glm-jax${extras:+ with extras $extras} into $VENV"
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 ||
    "$PYTHON" -m venv --clear "$VENV" || fail "cannot create $VENV"
  case "$extras" in *torch*) install_cpu_torch ;; esac
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$ROOT/constraints.txt" --editable "$ROOT${extras:+[$extras]}" ||
    fail "pip could not install the packages; is the network (PyPI) reachable?"
  touch "$stamp"
}

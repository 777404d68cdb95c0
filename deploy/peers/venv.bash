# Sourced by the peers that are Python programs: a virtual environment of their own, made once for each set of pins.
# Not a peer itself.

# make_venv DIR PIN...: DIR/venv with these packages; nothing to do if the pins are those of the last time.
make_venv() {
  local dir="$1" stamp
  shift
  stamp="$(python3 --version) $*"
  if [[ -f "$dir/pins" && "$(cat "$dir/pins")" == "$stamp" ]]; then
    return
  fi
  rm -rf "$dir/venv"
  mkdir -p "$dir"
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
  printf '%s' "$stamp" >"$dir/pins"
}

# versions DIR PACKAGE...: their names and versions in one line.
versions() {
  local dir="$1"
  shift
  "$dir/venv/bin/python" - "$@" <<'PYTHON'
import sys
from importlib.metadata import version

print(", ".join(f"{name} {version(name)}" for name in sys.argv[1:]))
PYTHON
}

# Sourced by quickstart.sh and test.sh: installs what a task needs and this machine lacks.
#
#   need_packages PACKAGE...   Debian and Ubuntu packages; asks for sudo where the user is not root
#
# Elsewhere (no apt) it says what is needed and lets the build find out whether it is there.

# What the presets need, their tests included: after quickstart.sh a plain "cmake --preset release" finds everything.
build_packages="g++ cmake ninja-build pkg-config libcli11-dev nlohmann-json3-dev libspdlog-dev libfmt-dev
  libopenblas-openmp-dev liblapacke-dev libpcre2-dev libxxhash-dev
  libopenmpi-dev openmpi-bin libgtest-dev libgmock-dev python3"

need_packages() {
  local missing=() package
  if ! command -v apt-get >/dev/null; then
    echo "This system has no apt. The build needs what these Debian packages hold: $*"
    return 0
  fi
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "Installing: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "error: these packages are missing and need root: ${missing[*]}" >&2; return 2; }
    as_root=(sudo)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null
}

# The clang-format of version 14, which the sources are laid out by, under whichever name it has here.
clang_format_14() {
  local candidate
  for candidate in clang-format-14 clang-format; do
    if "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

# A python3 that can import the modules named; the system's own is tried after the first on PATH.
python_with() {
  local modules="$1" candidate
  for candidate in python3 /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c "import $modules" 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

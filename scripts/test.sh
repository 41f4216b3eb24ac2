#!/usr/bin/env bash
# The whole test suite, from a fresh clone:
#   1. installs the packages that building and testing need and that are missing (apt; sudo where you are not root)
#   2. checks the formatting of C++ sources
#   3. builds everything (release) and runs every test; ends in ctest's summary
# No GPU and no network beyond the packages are needed. Slower checks: scripts/test_deep.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/dependencies.sh

echo "== packages"
# shellcheck disable=SC2086
need_packages $build_packages libgtest-dev libgmock-dev clang-format python3-matplotlib

echo "== formatting"
formatter=clang-format
command -v clang-format-14 >/dev/null && formatter=clang-format-14
git ls-files 'src/*.h' 'src/*.cpp' 'cuda/*.h' 'cuda/*.cu' 'tests/*.h' 'tests/*.cpp' 'bench/*.cpp' | xargs "$formatter" --dry-run -Werror
echo "clean"

echo "== build"
# The tests of the plotting scripts are skipped by a python without matplotlib.
cmake --preset release -G Ninja -Wno-dev -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
  -DPython3_EXECUTABLE="$(python_with matplotlib || command -v python3)" >/dev/null
cmake --build --preset release

echo "== tests"
ctest --preset release -j "$(nproc)"

#!/usr/bin/env bash
# The whole test suite, from a fresh clone:
#   1. installs the packages that building and testing need and that are missing (apt; sudo where you are not root)
#   2. checks the formatting of C++ sources, where clang-format 14 is to be had
#   3. builds everything (release) and runs every test; ends in ctest's summary
# No GPU and no network beyond the packages are needed. Slower checks: scripts/test_deep.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/dependencies.sh

echo "== packages"
# shellcheck disable=SC2086
need_packages $build_packages python3-matplotlib
# Asked for where apt has it only: not every distribution does, and no test needs it.
if ! clang_format_14 >/dev/null && apt-cache show clang-format-14 >/dev/null 2>&1; then
  need_packages clang-format-14
fi

echo "== formatting"
if formatter=$(clang_format_14); then
  git ls-files 'src/*.h' 'src/*.cpp' 'cuda/*.h' 'cuda/*.cu' 'tests/*.h' 'tests/*.cpp' 'bench/*.cpp' |
    xargs "$formatter" --dry-run -Werror
  echo "clean"
else
  echo "skipped: there is no clang-format 14 here, and other versions lay these sources out otherwise"
fi

echo "== build"
# The tests of the plotting scripts are skipped by a python without matplotlib.
cmake --preset release -Wno-dev -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
  -DPython3_EXECUTABLE="$(python_with matplotlib || command -v python3)" >/dev/null
cmake --build --preset release

echo "== tests"
ctest --preset release -j "$(nproc)"

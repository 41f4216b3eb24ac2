#!/usr/bin/env bash
# Checks that take too long for every change:
#   1. the test suite under AddressSanitizer and UndefinedBehaviorSanitizer
#   2. the CUDA kernels on the host, under AddressSanitizer and ThreadSanitizer, and without one of their barriers each
#   3. the data loader and the communicator (on 1, 2 and 3 processes) under ThreadSanitizer, with clang
#   4. libFuzzer on the config reader, shard headers and safetensors files, POLARON_FUZZ_SECONDS (default 300) each (clang)
#   5. a portable build (no -march) with the benchmarks, and its tests
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/dependencies.sh
# shellcheck disable=SC2086
need_packages $build_packages clang libclang-rt-14-dev libomp-dev libbenchmark-dev

strict=(-Wno-dev -DCMAKE_COMPILE_WARNING_AS_ERROR=ON)

echo "== sanitizers"
cmake --preset sanitize "${strict[@]}" >/dev/null
cmake --build --preset sanitize
ctest --preset sanitize -j "$(nproc)"

echo "== emulated CUDA kernels under the sanitizers (where there is a CUDA toolkit)"
cmake --preset release -B build/cuda-flavours "${strict[@]}" -DPOLARON_CUDA_FLAVOURS=ON >/dev/null
if grep -q '^CMAKE_CUDA_COMPILER:.*nvcc' build/cuda-flavours/CMakeCache.txt; then
  cmake --build build/cuda-flavours --target test_cuda_asan test_cuda_tsan
  ctest --test-dir build/cuda-flavours -R cuda_kernels_.*_sanitizer --output-on-failure
fi
echo "== every barrier of the CUDA kernels removed in turn"
python3 scripts/mutate_barriers.py --build build/barriers

# Neither library uses OpenMP. What remains unseen: the kernels' OpenMP threads, the trainer around both, and whatever
# Open MPI does inside; what it reads and writes of ours is told by tests/comm/mpi_accesses.cpp.
echo "== threads"
cmake --preset thread "${strict[@]}" >/dev/null
cmake --build --preset thread
ctest --preset thread -j "$(nproc)"

echo "== fuzzing"
cmake -S . -B build/fuzz -G Ninja "${strict[@]}" -DCMAKE_CXX_COMPILER=clang++ -DPOLARON_FUZZ=ON -DPOLARON_MARCH= \
  -DPOLARON_FUZZ_SECONDS="${POLARON_FUZZ_SECONDS:-300}" >/dev/null
cmake --build build/fuzz --target fuzzers
ctest --test-dir build/fuzz -R '^fuzz_' --output-on-failure

echo "== portable build"
cmake --preset portable "${strict[@]}" -DPOLARON_BENCHMARKS=ON >/dev/null
cmake --build --preset portable
ctest --test-dir build/portable --output-on-failure -j "$(nproc)"

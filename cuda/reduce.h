// Sums over the threads of a warp and of a row of a block, always in the same order.
#pragma once

#include "cuda/launch.h"

namespace polaron::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffU;

// Every lane gets the same bits: in each round, partners add the same two numbers.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}

// Sums of n values each over the threads of one row of the block (those with the same threadIdx.y, blockDim.x of them,
// whole warps); every thread gets them. scratch: shared memory of n * blockDim.x / 32 values for this row. All threads
// of the block call this together; before scratch may be used again, all must have passed another barrier (callers
// alternate between two).
template <int n, class T>
__device__ __forceinline__ void row_sums(T (&values)[n], T* scratch) {
#pragma unroll
  for (int i = 0; i < n; ++i) values[i] = warp_sum(values[i]);
  const unsigned warps = blockDim.x / 32;
  if (warps == 1) return;
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) scratch[threadIdx.x / 32 * n + i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) values[i] = T{0};
  for (unsigned warp = 0; warp < warps; ++warp) {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] += scratch[warp * n + i];
  }
}

}  // namespace polaron::cuda

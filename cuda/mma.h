// Tensor cores and what feeds them, as PTX has them from sm_80 on: products of bf16 tiles by one warp (mma), tiles from
// shared memory to registers (ldmatrix), copies from global to shared memory that run beside the computation
// (cp.async). Layouts of fragments: PTX ISA, "Matrix fragments for mma.m16n8k16". Each function has a plain twin for
// the emulation; the twin of a copy leaves NaN at its target until the copy is waited for.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace polaron::cuda {

#if defined(__CUDACC__)

__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// c += a b, c [16, 8] fp32, a [16, 16] bf16, b [16, 8] bf16, by all lanes of a warp. With g = lane / 4 and p = 2 *
// (lane % 4), a lane holds c: (g, p), (g, p + 1), (g + 8, p), (g + 8, p + 1); a, in pairs along a row: (g, p), (g + 8,
// p), (g, p + 8), (g + 8, p + 8); b, in pairs down a column: (p, g), (p + 8, g).
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements; lanes 8m to 8m + 7 give the addresses of the rows of matrix m, 16 bytes each.
// to[m]: of matrix m the elements (lane / 4, 2 * (lane % 4)) and the one to the right of it.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}
// The same of the transposed matrices: to[m] is (2 * (lane % 4), lane / 4) and the element below it.
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// Starts copying `bytes` (4 or 16, to addresses that are multiples of it) from global memory; where not `there`,
// `from` is not read and zeros are written. 16 bytes go around the first-level cache.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool there) {
  static_assert(bytes == 4 || bytes == 16);
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(from),
                 "r"(there ? 4 : 0)
                 : "memory");
  }
}
// Closes this thread's group of copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than `pending` of this thread's groups, the latest ones, are under way. Other threads see the
// copies after a barrier.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 2^x within 2 units in the last place; results below 2^-126 are zero.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  emulation::MmaLane lane{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulation::warp_collective(&lane, &emulation::mma_m16n8k16, {file, line});
  for (int i = 0; i < 4; ++i) c[i] = lane.c[i];
}

inline void ldmatrix_x4(std::uint32_t (&to)[4], const void* row, const char* file = __builtin_FILE(),
                        unsigned line = __builtin_LINE()) {
  emulation::LdmatrixLane lane{emulation::load<emulation::Space::shared>(static_cast<const emulation::MatrixRow*>(row)),
                               {}};
  emulation::warp_collective(&lane, &emulation::ldmatrix_x4, {file, line});
  for (int i = 0; i < 4; ++i) to[i] = lane.to[i];
}
inline void ldmatrix_x4_trans(std::uint32_t (&to)[4], const void* row, const char* file = __builtin_FILE(),
                              unsigned line = __builtin_LINE()) {
  emulation::LdmatrixLane lane{emulation::load<emulation::Space::shared>(static_cast<const emulation::MatrixRow*>(row)),
                               {}};
  emulation::warp_collective(&lane, &emulation::ldmatrix_x4_trans, {file, line});
  for (int i = 0; i < 4; ++i) to[i] = lane.to[i];
}

template <int bytes>
void copy_async(void* shared, const void* from, bool there) {
  static_assert(bytes == 4 || bytes == 16);
  emulation::async_copies().start(shared, from, bytes, there);
}
inline void copy_async_commit() { emulation::async_copies().commit(); }
template <int pending>
void copy_async_wait() {
  emulation::async_copies().wait(pending);
}

inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126F ? 0.0F : y;  // NaN stays NaN
}

#endif

}  // namespace polaron::cuda

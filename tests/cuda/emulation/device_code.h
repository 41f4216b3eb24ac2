// What kernels need from CUDA and a host compiler lacks: the words of the language and the intrinsics. Included by
// cuda/launch.h in place of nvcc's built-ins. Float atomics are left out on purpose: kernels must be deterministic.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "emulation/emulation.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// Kernels get shared memory from static_shared and dynamic_shared (cuda/launch.h) only: these can be filled with NaN
// and guarded.
#define __shared__ static_assert(false, "use static_shared or dynamic_shared of cuda/launch.h");

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace polaron::cuda::emulation {

// Where a barrier or warp operation stands in the source.
struct Where {
  const char* file = "";
  unsigned line = 0;
};

// Memory of the running block; `key` names one variable. Filled with NaN when the block begins to use it.
void* static_shared_memory(const void* key, std::size_t bytes);
void* dynamic_shared_memory();

void block_barrier(const Where& where);

enum class WarpOp : std::uint8_t { sync, shuffle, ballot, add, collective };
// Waits until all lanes of `mask` have come to the same operation, which the last of them carries out for all. shuffle:
// the value of lane `source`; ballot: a bit for each lane of the mask whose value is not 0; add: the sum modulo 2^32.
std::uint64_t warp_operation(WarpOp op, unsigned mask, std::uint64_t value, int source, const Where& where);

int lane();

// What a whole warp does together: the last lane to come calls action(lanes) with what each lane gave.
using WarpAction = void (*)(void* const (&lanes)[32]);
void warp_collective(void* mine, WarpAction action, const Where& where);

// The parts of a lane in the operations on matrices of cuda/mma.h.
struct MmaLane {
  float c[4];
  std::uint32_t a[4], b[2];
};
struct alignas(16) MatrixRow {
  std::uint16_t elements[8];
};
struct LdmatrixLane {
  MatrixRow row;
  std::uint32_t to[4];
};
void mma_m16n8k16(void* const (&lanes)[32]);
void ldmatrix_x4(void* const (&lanes)[32]);
void ldmatrix_x4_trans(void* const (&lanes)[32]);

template <class T>
T shuffle(unsigned mask, T value, int source, const Where& where) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(WarpOp::shuffle, mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace polaron::cuda::emulation

inline void __syncthreads(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
  polaron::cuda::emulation::block_barrier({file, line});
}
inline void __syncwarp(unsigned mask = 0xffffffffU, const char* file = __builtin_FILE(),
                       unsigned line = __builtin_LINE()) {
  polaron::cuda::emulation::warp_operation(polaron::cuda::emulation::WarpOp::sync, mask, 0, 0, {file, line});
}

// The lane to read, as the CUDA programming guide defines it for segments of `width` lanes: outside the segment a lane
// reads itself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const char* file = __builtin_FILE(),
              unsigned line = __builtin_LINE()) {
  const int lane = polaron::cuda::emulation::lane();
  return polaron::cuda::emulation::shuffle(mask, value, lane / width * width + (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, const char* file = __builtin_FILE(),
                  unsigned line = __builtin_LINE()) {
  const int lane = polaron::cuda::emulation::lane(), other = lane ^ lane_mask;
  return polaron::cuda::emulation::shuffle(mask, value, other >= lane / width * width + width ? lane : other,
                                           {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                 unsigned line = __builtin_LINE()) {
  const int lane = polaron::cuda::emulation::lane(), other = lane - static_cast<int>(delta);
  return polaron::cuda::emulation::shuffle(mask, value, other < lane / width * width ? lane : other, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                   unsigned line = __builtin_LINE()) {
  const int lane = polaron::cuda::emulation::lane(), other = lane + static_cast<int>(delta);
  return polaron::cuda::emulation::shuffle(mask, value, other >= lane / width * width + width ? lane : other,
                                           {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                              unsigned line = __builtin_LINE()) {
  using polaron::cuda::emulation::WarpOp;
  return static_cast<unsigned>(
      polaron::cuda::emulation::warp_operation(WarpOp::ballot, mask, predicate != 0 ? 1 : 0, 0, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                      unsigned line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, file, line) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                      unsigned line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, file, line) == mask ? 1 : 0;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, const char* file = __builtin_FILE(),
                                  unsigned line = __builtin_LINE()) {
  using polaron::cuda::emulation::WarpOp;
  return static_cast<unsigned>(polaron::cuda::emulation::warp_operation(WarpOp::add, mask, value, 0, {file, line}));
}

// Plain loads and stores: the caches that they hint at do not exist here. Devices fault where an access is not aligned
// to its size, and where an instruction for one kind of memory gets an address of another (PTX ISA, "State spaces").
namespace polaron::cuda::emulation {
enum class Space : std::uint8_t { global, shared };
void check_access(const void* address, std::size_t bytes, Space space);
template <Space space = Space::global, class T>
T load(const T* from) {
  check_access(from, sizeof(T), space);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <class T>
void store(T* to, const T& value) {
  check_access(to, sizeof(T), Space::global);
  std::memcpy(to, &value, sizeof(T));
}

// The asynchronous copies of one thread: the source is read, and the target written, as late as a device may.
class AsyncCopies {
 public:
  void start(void* to, const void* from, std::size_t bytes, bool there) {
    check_access(to, bytes, Space::shared);
    if (there) check_access(from, bytes, Space::global);
    std::memset(to, 0xFF, bytes);
    copies_.push_back({to, from, bytes, there, groups_});
  }
  void commit() { ++groups_; }
  void wait(int pending) {
    std::size_t kept = 0;
    for (const Copy& copy : copies_) {
      if (copy.group + pending >= groups_) {
        copies_[kept++] = copy;
      } else if (copy.there) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    copies_.resize(kept);
  }
  void forget() {
    copies_.clear();
    groups_ = 0;
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    bool there;
    int group;
  };
  std::vector<Copy> copies_;
  int groups_ = 0;  // closed so far
};
AsyncCopies& async_copies();  // of the running thread
}  // namespace polaron::cuda::emulation
template <class T>
T __ldg(const T* from) {
  return polaron::cuda::emulation::load(from);
}
template <class T>
T __ldca(const T* from) {
  return polaron::cuda::emulation::load(from);
}
template <class T>
T __ldcs(const T* from) {
  return polaron::cuda::emulation::load(from);
}
template <class T>
T __ldcg(const T* from) {
  return polaron::cuda::emulation::load(from);
}
template <class T>
void __stwb(T* to, std::type_identity_t<T> value) {
  polaron::cuda::emulation::store(to, value);
}
template <class T>
void __stcs(T* to, std::type_identity_t<T> value) {
  polaron::cuda::emulation::store(to, value);
}
template <class T>
void __stcg(T* to, std::type_identity_t<T> value) {
  polaron::cuda::emulation::store(to, value);
}

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }
inline float rsqrtf(float value) { return 1.0F / std::sqrt(value); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <class T>
concept AtomicInteger = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;
template <AtomicInteger T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).fetch_or(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).fetch_and(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).exchange(value, std::memory_order_relaxed);
}
template <AtomicInteger T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*at).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}
template <AtomicInteger T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  std::atomic_ref<T> cell(*at);
  T old = cell.load(std::memory_order_relaxed);
  while (old < value && !cell.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}
template <AtomicInteger T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  std::atomic_ref<T> cell(*at);
  T old = cell.load(std::memory_order_relaxed);
  while (old > value && !cell.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}

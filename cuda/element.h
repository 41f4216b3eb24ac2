// Elements in device memory. Kernels are templates on the element type and compute in fp32; they read and write `n`
// neighbouring elements at a time: 16 bytes a memory access where the data allow it (n = kPack<T>), one element
// otherwise (n = 1).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "backend/bf16.h"
#include "backend/element.h"
#include "backend/tensor.h"
#include "cuda/launch.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#endif

namespace polaron::cuda {

template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// How device memory is read and written: data that no one will read again soon need not displace what is in the caches.
// none: memory of the block. The instructions of the other two are for device memory only and fault on shared memory.
enum class Cache : std::uint8_t { keep, stream, none };

// The value that storing `value` as T leaves.
template <class T>
__device__ __forceinline__ float rounded(float value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_float(to_bf16(value));
  } else {
    return value;
  }
}

// Two fp32 values -> two bf16 in one word, the first in the lower half: one instruction on the device.
__device__ __forceinline__ std::uint32_t to_bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
#else
  return to_bf16(low).bits | static_cast<std::uint32_t>(to_bf16(high).bits) << 16U;
#endif
}
__device__ __forceinline__ float bf16_low(std::uint32_t pair) {
  return to_float(bf16{static_cast<std::uint16_t>(pair & 0xffffU)});
}
__device__ __forceinline__ float bf16_high(std::uint32_t pair) {
  return to_float(bf16{static_cast<std::uint16_t>(pair >> 16U)});
}

template <Cache cache, class Word>
__device__ __forceinline__ Word load_word(const void* from) {
  if constexpr (cache == Cache::stream) {
    return __ldcs(static_cast<const Word*>(from));
  } else if constexpr (cache == Cache::none) {
    return *static_cast<const Word*>(from);
  } else {
    return __ldca(static_cast<const Word*>(from));
  }
}
template <Cache cache, class Word>
__device__ __forceinline__ void store_word(void* to, const Word& value) {
  if constexpr (cache == Cache::stream) {
    __stcs(static_cast<Word*>(to), value);
  } else if constexpr (cache == Cache::none) {
    *static_cast<Word*>(to) = value;
  } else {
    __stwb(static_cast<Word*>(to), value);
  }
}

// to[i] = from[i] for i < n. n = 1, or a multiple of kPack<T> with `from` on a multiple of 16 bytes.
template <Cache cache = Cache::keep, class T, int n>
__device__ __forceinline__ void load(const T* from, float (&to)[n]) {
  if constexpr (n == 1 && std::is_same_v<T, float>) {
    to[0] = load_word<cache, float>(from);
  } else if constexpr (n == 1) {
    to[0] = to_float(bf16{load_word<cache, unsigned short>(from)});
  } else {
    static_assert(n % kPack<T> == 0);
#pragma unroll
    for (int i = 0; i < n; i += kPack<T>) {
      const uint4 word = load_word<cache, uint4>(from + i);
      const std::uint32_t parts[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        if constexpr (std::is_same_v<T, float>) {
          to[i + part] = __builtin_bit_cast(float, parts[part]);
        } else {
          to[i + 2 * part] = bf16_low(parts[part]);
          to[i + 2 * part + 1] = bf16_high(parts[part]);
        }
      }
    }
  }
}

// to[i] = from[i], rounded to nearest for bf16.
template <Cache cache = Cache::keep, class T, int n>
__device__ __forceinline__ void store(T* to, const float (&from)[n]) {
  if constexpr (n == 1 && std::is_same_v<T, float>) {
    store_word<cache, float>(to, from[0]);
  } else if constexpr (n == 1) {
    store_word<cache, unsigned short>(to, to_bf16(from[0]).bits);
  } else {
    static_assert(n % kPack<T> == 0);
#pragma unroll
    for (int i = 0; i < n; i += kPack<T>) {
      std::uint32_t parts[4];
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        if constexpr (std::is_same_v<T, float>) {
          parts[part] = __builtin_bit_cast(std::uint32_t, from[i + part]);
        } else {
          parts[part] = to_bf16_pair(from[i + 2 * part], from[i + 2 * part + 1]);
        }
      }
      store_word<cache, uint4>(to + i, make_uint4(parts[0], parts[1], parts[2], parts[3]));
    }
  }
}

// The same for the first `count` of n elements at the end of a row: the others are read as zero and not written.
template <Cache cache = Cache::keep, class T, int n>
__device__ __forceinline__ void load(const T* from, std::int64_t count, float (&to)[n]) {
  if (count >= n) return load<cache>(from, to);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    float one[1] = {0.0F};
    if (i < count) load<cache>(from + i, one);
    to[i] = one[0];
  }
}
template <Cache cache = Cache::keep, class T, int n>
__device__ __forceinline__ void store(T* to, std::int64_t count, const float (&from)[n]) {
  if (count >= n) return store<cache>(to, from);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const float one[1] = {from[i]};
    if (i < count) store<cache>(to + i, one);
  }
}

// --- on the host
// ------------------------------------------------------------------------------------------------------------------------

// Whether every row of all tensors that are there begins on a multiple of 16 bytes.
inline bool aligned_rows(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
    const bool rows = tensor.rows <= 1 || static_cast<std::size_t>(tensor.stride) * size_of(tensor.dtype) % 16 == 0;
    if (tensor && !(aligned && rows)) return false;
  }
  return true;
}

// Calls body with std::integral_constant of the elements an access may take: kPack<T> for aligned data, 1 otherwise.
template <class T, class Body>
void with_pack(bool aligned, Body&& body) {
  if (aligned) {
    body(std::integral_constant<int, kPack<T>>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

template <class A, class B>
constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

}  // namespace polaron::cuda

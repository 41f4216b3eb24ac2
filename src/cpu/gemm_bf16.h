// Vectors of bf16 as vectors of floats (internal to the products of bf16). The bits are to_float's and to_bf16's.
#pragma once

#include <algorithm>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "backend/bf16.h"
#include "cpu/simd.h"

namespace polaron::cpu {

using HalfVec = std::uint16_t __attribute__((vector_size(kVectorBytes / 2)));

static inline UnsignedVec load_bits(const bf16* from) {
  HalfVec half;
  std::memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, UnsignedVec);
}
static inline Vec load_bf16(const bf16* from) { return std::bit_cast<Vec>(load_bits(from) << 16); }

// With AVX512_BF16 denormal numbers become 0, otherwise they are rounded like others.
static inline void store_bf16(bf16* to, Vec value) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh half = _mm512_cvtneps_pbh(std::bit_cast<__m512>(value));
#else
  const UnsignedVec bits = std::bit_cast<UnsignedVec>(value), high = bits >> 16;
  const UnsignedVec rounded = (bits + 0x7fffU + (high & 1U)) >> 16;
  const UnsignedVec result = value != value ? high | 0x40U : rounded;
  const HalfVec half = __builtin_convertvector(result, HalfVec);
#endif
  std::memcpy(to, &half, sizeof half);
}

static inline void to_floats(const bf16* from, std::int64_t n, float* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_vec(to + i, load_bf16(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

static inline void to_bf16s(const float* from, std::int64_t n, bf16* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_bf16(to + i, load_vec(from + i));
  for (; i < n; ++i) to[i] = to_bf16(from[i]);
}

// In place: the floats that are left when values are rounded to bf16.
static inline void round_in_place(float* values, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    bf16 rounded[kLanes];
    store_bf16(rounded, load_vec(values + i));
    store_vec(values + i, load_bf16(rounded));
  }
  for (; i < n; ++i) values[i] = to_float(to_bf16(values[i]));
}

}  // namespace polaron::cpu

// Vectors of floats as wide as the processor's registers, by the vector extension that GCC and Clang share: the same
// source serves AVX-512, AVX2, SSE2 and NEON. Functions are static because the width is a matter of each translation
// unit's compiler flags: two widths in one program must not be taken for one function.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/element.h"

namespace polaron::cpu {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

using Vec = float __attribute__((vector_size(kVectorBytes)));
using UnsignedVec = std::uint32_t __attribute__((vector_size(kVectorBytes)));
using IntVec = std::int32_t __attribute__((vector_size(kVectorBytes)));
using ShortVec = std::uint16_t __attribute__((vector_size(kVectorBytes / 2)));  // as many lanes as Vec
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(float));

// Any alignment.
static inline Vec load_vec(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
static inline void store_vec(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }
static inline Vec load_vec(const bf16* from) {
  ShortVec bits;
  std::memcpy(&bits, from, sizeof bits);
  return std::bit_cast<Vec>(__builtin_convertvector(bits, UnsignedVec) << 16U);
}
// As to_bf16 (backend/bf16.h) rounds.
static inline void store_vec(bf16* to, Vec value) {
  const auto bits = std::bit_cast<UnsignedVec>(value);
  const UnsignedVec rounded = bits + 0x7FFFU + ((bits >> 16U) & 1U);
  const UnsignedVec quiet_nan = bits | 0x400000U;
  const auto upper = __builtin_convertvector((value != value ? quiet_nan : rounded) >> 16U, ShortVec);
  std::memcpy(to, &upper, sizeof upper);
}
static inline Vec broadcast(float value) { return value - Vec{}; }  // x - 0 is x for every x, x + 0 is not for -0

// For functions that are written once for float and Vec: a value in every lane, the type of the lanes' bits, and small
// integers as numbers.
template <class Float>
inline Float same(float value) {
  return value - Float{};
}
template <class Float>
using BitsOf = std::conditional_t<std::is_same_v<Float, float>, std::uint32_t, UnsignedVec>;
template <class Float>
inline Float to_float(BitsOf<Float> value) {
  if constexpr (std::is_same_v<Float, float>) {
    return static_cast<float>(static_cast<std::int32_t>(value));
  } else {
    return __builtin_convertvector(std::bit_cast<IntVec>(value), Float);
  }
}
static inline IntVec broadcast(std::int32_t value) { return value - IntVec{}; }

namespace transpose_detail {

// One step of the usual exchange: bit `Step` of the lane number changes places with the same bit of the row number.
template <int Step, std::size_t... Lane>
inline void exchange(Vec& upper, Vec& lower, std::index_sequence<Lane...>) {
  const Vec a = upper, b = lower;
  upper = __builtin_shufflevector(
      a, b, ((Lane & Step) != 0 ? kLanes + static_cast<int>(Lane) - Step : static_cast<int>(Lane))...);
  lower = __builtin_shufflevector(
      a, b, ((Lane & Step) != 0 ? kLanes + static_cast<int>(Lane) : static_cast<int>(Lane) + Step)...);
}

template <int Step>
inline void steps(Vec (&rows)[kLanes]) {
  if constexpr (Step < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & Step) == 0) exchange<Step>(rows[i], rows[i + Step], std::make_index_sequence<kLanes>{});
    }
    steps<2 * Step>(rows);
  }
}

}  // namespace transpose_detail

// to[c][r] = factor * from[r][c] for r < rows, c < cols; fp32 or bf16. Strides in elements; `to` must not overlap
// `from`.
template <class From, class To>
static inline void transpose_scaled(const From* from, std::int64_t from_stride, std::int64_t rows, std::int64_t cols,
                                    float factor, To* to, std::int64_t to_stride) {
  for (std::int64_t r = 0; r < rows; r += kLanes) {
    for (std::int64_t c = 0; c < cols; c += kLanes) {
      const From* source = from + r * from_stride + c;
      To* target = to + c * to_stride + r;
      if (r + kLanes <= rows && c + kLanes <= cols) {
        Vec block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = load_vec(source + i * from_stride);
        transpose_detail::steps<1>(block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store_vec(target + i * to_stride, factor * block[i]);
        continue;
      }
      for (std::int64_t i = 0; i < kLanes && r + i < rows; ++i) {
        for (std::int64_t j = 0; j < kLanes && c + j < cols; ++j) {
          store(target + j * to_stride + i, factor * load(source + i * from_stride + j));
        }
      }
    }
  }
}

}  // namespace polaron::cpu

// Elementary functions written so that the compiler vectorises loops over them (no calls, no branches). fp32. NaN in,
// NaN out.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/simd.h"

namespace polaron::cpu {

// e^x within 2 units in the last place; above 88.72 infinity, below -87.3 zero. x = n ln 2 + r with ln 2 in two parts
// (Cody and Waite), |r| <= ln2/2; the minimax polynomial of degree 5 for (e^r - 1 - r) / r^2, and the two parts of ln
// 2, are those of expf in Cephes (S. L. Moshier, netlib.org/cephes).
inline float simd_exp(float x) {
  constexpr float kLog2E = 1.44269504F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const float low = x < -87.3F ? -87.3F : x;
  const float clamped = low > 89.0F ? 89.0F : low;
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  // 2^n in two factors so that n = 128 reaches infinity through 2^127 * 2.
  const auto exponent = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = exponent >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((exponent - half + 127) << 23);
  const float value = p * first * second;
  return x < -87.3F ? 0.0F : value;
}

// 2^x within 2 units in the last place for x <= 127, which is not checked; exact at integers; from -127 down zero. For
// arguments known to end (a softmax, a sigmoid), at half the cost of simd_exp. Degree 4 minimax polynomial for
// (2^r - 1) / r on [-1/2, 1/2], relative error of 2^r 9e-8 (fitted for this file by iteratively reweighted least
// squares, like all polynomials below). `Float` is float or Vec.
template <class Float>
inline Float simd_exp2(Float x) {
  using Bits = BitsOf<Float>;
  constexpr float kRound = 12582912.0F;
  const Float lowest = same<Float>(-127.0F);  // whose exponent bits are 0, and 0 all bits of the result's second factor
  const Float clamped = x < lowest ? lowest : x;
  const Float shifted = clamped + kRound;
  const Float r = clamped - (shifted - kRound);
  Float p = same<Float>(1.326472205e-3F);
  p = p * r + 9.671512997e-3F;
  p = p * r + 5.550733760e-2F;
  p = p * r + 2.402224208e-1F;
  p = p * r + 6.931469776e-1F;
  p = p * r + 1.0F;
  // The integer stands in the low bits of `shifted`; moved to the exponent's place, the bits above it fall off.
  const Bits exponent = (std::bit_cast<Bits>(shifted) << 23U) + 0x3F800000U;
  return p * std::bit_cast<Float>(exponent);
}

// log2 x within 2 units in the last place for positive normal x; not a number for NaN and infinity. x = 2^n (1 + f)
// with 1 + f between the roots of 1/2 and 2; log2(1 + f) = f P(f), P of degree 8, relative error 2.6e-8.
template <class Float>
inline Float simd_log2(Float x) {
  using Bits = BitsOf<Float>;
  constexpr std::uint32_t kRootHalf = 0x3F3504F3U;  // bits of sqrt(1/2)
  const Bits bits = std::bit_cast<Bits>(x);
  // The exponent as a floating-point number: its distance from that of sqrt(1/2), biased to stay positive.
  const Bits exponent = (bits - kRootHalf + 0x3F800000U) >> 23U;
  const Float n = to_float<Float>(exponent) - 127.0F;
  const Float f = std::bit_cast<Float>(bits - ((exponent - 127U) << 23U)) - 1.0F;
  Float p = same<Float>(1.258396568e-1F);
  p = p * f - 2.072707704e-1F;
  p = p * f + 2.157150630e-1F;
  p = p * f - 2.389446282e-1F;
  p = p * f + 2.879162837e-1F;
  p = p * f - 3.607036930e-1F;
  p = p * f + 4.809106422e-1F;
  p = p * f - 7.213473467e-1F;
  p = p * f + 1.442695004F;
  return n + f * p + (x - x);
}

// tanh x within 3 units in the last place. |x| < 0.625: x + x^3 P(x^2), P of degree 4, relative error 4.4e-9; beyond
// (1 - e^-2|x|) / (1 + e^-2|x|).
inline float simd_tanh(float x) {
  const float a = std::abs(x);
  const float z = x * x;
  float p = -5.704978655e-3F;
  p = p * z + 2.063907902e-2F;
  p = p * z - 5.373971225e-2F;
  p = p * z + 1.333144216e-1F;
  p = p * z - 3.333328194e-1F;
  const float small = a + a * z * p;
  const float e = simd_exp(-2.0F * a);
  const float large = (1.0F - e) / (1.0F + e);
  return std::copysign(a < 0.625F ? small : large, x);
}

// erf x within 3 units in the last place. |x| < 1: x + x P(x^2), P of degree 6, relative error 1.2e-9; beyond
// 1 - 2^-R(|x|), R of degree 6 fitted to -log2 erfc on [1, 4], relative error of erf 1.1e-9. From 4 on erf is 1 in
// fp32.
inline float simd_erf(float x) {
  const float a = std::abs(x);
  const float z = x * x;
  float p = 7.853859261e-5F;
  p = p * z - 8.010193027e-4F;
  p = p * z + 5.188327620e-3F;
  p = p * z - 2.685381190e-2F;
  p = p * z + 1.128358515e-1F;
  p = p * z - 3.761262582e-1F;
  p = p * z + 1.283791657e-1F;
  const float small = a + a * p;
  const float c = a > 4.0F ? 4.0F : a;
  float r = -2.688877771e-4F;
  r = r * c + 4.252566508e-3F;
  r = r * c - 3.150564486e-2F;
  r = r * c + 1.487515590e-1F;
  r = r * c + 9.206484354e-1F;
  r = r * c + 1.626045956F;
  r = r * c + 4.927206564e-4F;
  const float large = 1.0F - simd_exp2(-r);
  return std::copysign(a < 1.0F ? small : large, x);
}

}  // namespace polaron::cpu

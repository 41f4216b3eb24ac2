// Elementary functions written so that the compiler vectorises loops over them (no calls, no branches). fp32.
#pragma once

#include <bit>
#include <cstdint>

namespace polaron::cpu {

// e^x within 2 units in the last place; e^NaN = NaN, above 88.72 infinity, below -87.3 zero or denormal-free small
// values. Cody-Waite reduction x = n ln 2 + r, |r| <= ln2/2, and the Taylor-like minimax polynomial of degree 6 for
// e^r.
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

}  // namespace polaron::cpu

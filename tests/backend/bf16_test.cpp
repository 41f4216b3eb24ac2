#include "backend/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace polaron {
namespace {

constexpr std::uint32_t kPatterns = 1U << 16U;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint16_t kLargest = 0x7F7FU;  // bits of (2 - 2^-7) 2^127

bf16 pattern(std::uint32_t bits) { return {static_cast<std::uint16_t>(bits)}; }
float with_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// As a number in which infinity is one step beyond the largest finite bf16, as rounding sees it.
double on_the_line(std::uint32_t bits) {
  const auto value = static_cast<double>(to_float(pattern(bits)));
  return std::isinf(value) ? std::copysign(0x1p128, value) : value;
}

TEST(Bf16, is_the_upper_half_of_a_float) {
  EXPECT_EQ(to_float({0x0000U}), 0.0F);
  EXPECT_EQ(to_float({0x3F80U}), 1.0F);
  EXPECT_EQ(to_float({0xC049U}), -3.140625F);
  EXPECT_EQ(to_float({kLargest}), 0x1.FEp127F);
  EXPECT_EQ(to_float({0x0080U}), 0x1p-126F);  // the smallest normal number
  EXPECT_EQ(to_float({0x0001U}), 0x1p-133F);  // the smallest of all
  EXPECT_EQ(to_float({0xFF80U}), -kInfinity);
  EXPECT_TRUE(std::signbit(to_float({0x8000U})));
}

TEST(Bf16, every_pattern_survives_the_way_to_float_and_back) {
  for (std::uint32_t bits = 0; bits < kPatterns; ++bits) {
    const float value = to_float(pattern(bits));
    const std::uint32_t expected = std::isnan(value) ? bits | 0x40U : bits;  // NaNs come back quiet
    ASSERT_EQ(to_bf16(value).bits, expected) << std::hex << bits;
  }
}

// Every finite bf16 and what lies between it and the next one away from zero: subnormal numbers and the step to
// infinity are among them.
TEST(Bf16, rounding_takes_the_nearest_and_of_two_equally_near_the_even_one) {
  for (std::uint32_t bits = 0; bits < kPatterns; ++bits) {
    if (!std::isfinite(to_float(pattern(bits)))) continue;
    for (const std::uint32_t low : {0x0001U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      const float value = with_bits(bits << 16U | low);
      const double below = std::abs(static_cast<double>(value) - on_the_line(bits));
      const double above = std::abs(static_cast<double>(value) - on_the_line(bits + 1));
      const std::uint32_t nearest = below < above ? bits : above < below ? bits + 1 : (bits + 1) & ~1U;
      ASSERT_EQ(to_bf16(value).bits, nearest) << std::hex << bits << ' ' << low;
    }
  }
}

TEST(Bf16, what_is_beyond_the_largest_becomes_infinity_from_half_a_step_on) {
  EXPECT_EQ(to_bf16(with_bits(0x7F7F7FFFU)).bits, kLargest);
  EXPECT_EQ(to_bf16(with_bits(0x7F7F8000U)).bits, 0x7F80U);
  EXPECT_EQ(to_float(to_bf16(std::numeric_limits<float>::max())), kInfinity);
  EXPECT_EQ(to_float(to_bf16(std::numeric_limits<float>::lowest())), -kInfinity);
  EXPECT_EQ(to_float(to_bf16(kInfinity)), kInfinity);
  EXPECT_EQ(to_float(to_bf16(-kInfinity)), -kInfinity);
}

TEST(Bf16, what_is_too_small_becomes_zero_of_its_sign) {
  EXPECT_EQ(to_bf16(0x1p-134F).bits, 0x0000U);  // half the smallest number: a tie, and zero is even
  EXPECT_EQ(to_bf16(-0x1p-134F).bits, 0x8000U);
  EXPECT_EQ(to_bf16(0x1.8p-134F).bits, 0x0001U);
  EXPECT_EQ(to_bf16(-std::numeric_limits<float>::denorm_min()).bits, 0x8000U);
}

TEST(Bf16, nan_stays_nan_with_its_sign_wherever_its_mantissa_has_bits) {
  for (const std::uint32_t sign : {0U, 0x80000000U}) {
    for (const std::uint32_t mantissa : {0x1U, 0x7FFFU, 0x8000U, 0x10000U, 0x400000U, 0x7F8000U, 0x7FFFFFU}) {
      const bf16 result = to_bf16(with_bits(sign | 0x7F800000U | mantissa));
      EXPECT_TRUE(std::isnan(to_float(result))) << std::hex << mantissa;
      EXPECT_EQ(result.bits >> 15U, sign >> 31U) << std::hex << mantissa;
    }
  }
}

}  // namespace
}  // namespace polaron

// The vectorisable elementary functions against the C library in double precision, over (nearly) all of their range.
#include "cpu/simd_math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>

#include "support/worse.h"

namespace polaron::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Errors {
  double relative = 0, absolute = 0;
  float at = 0;
};

// The largest errors over fp32 numbers between low and high: every `stride`-th one, of both signs where asked.
Errors worst(const std::function<float(float)>& f, const std::function<double(double)>& reference, float low,
             float high) {
  constexpr std::uint32_t kStride = 811;
  Errors errors;
  for (const float sign : {1.0F, -1.0F}) {
    for (auto bits = std::uint32_t{0}; bits < std::bit_cast<std::uint32_t>(kInfinity); bits += kStride) {
      const float x = sign * std::bit_cast<float>(bits);
      if (x < low || x > high) continue;
      const double expected = reference(static_cast<double>(x));
      const double error = std::abs(static_cast<double>(f(x)) - expected);
      errors.absolute = test::worse(errors.absolute, error);
      // Relative errors of denormal results say nothing.
      const double relative = std::abs(expected) < 1.2e-38 ? 0.0 : error / std::abs(expected);
      if (!(relative <= errors.relative) && !std::isnan(errors.relative)) {
        errors.relative = relative;
        errors.at = x;
      }
    }
  }
  return errors;
}

TEST(SimdMath, exp_is_within_2_units_in_the_last_place) {
  const Errors errors = worst(
      simd_exp, [](double x) { return std::exp(x); }, -87.3F, 88.7F);
  EXPECT_LT(errors.relative, 1.2e-7) << "at " << errors.at;
}

TEST(SimdMath, exp_ends_in_zero_and_infinity) {
  EXPECT_EQ(simd_exp(0.0F), 1.0F);
  EXPECT_EQ(simd_exp(-0.0F), 1.0F);
  EXPECT_EQ(simd_exp(-87.4F), 0.0F);
  EXPECT_EQ(simd_exp(-1e30F), 0.0F);
  EXPECT_EQ(simd_exp(-kInfinity), 0.0F);
  EXPECT_EQ(simd_exp(88.8F), kInfinity);
  EXPECT_EQ(simd_exp(1e30F), kInfinity);
  EXPECT_EQ(simd_exp(kInfinity), kInfinity);
}

TEST(SimdMath, exp2_is_within_2_units_in_the_last_place) {
  const Errors errors = worst(
      simd_exp2<float>, [](double x) { return std::exp2(x); }, -126.0F, 127.0F);
  EXPECT_LT(errors.relative, 2.0e-7) << "at " << errors.at;
}

TEST(SimdMath, exp2_is_exact_at_integers_and_ends_in_zero) {
  for (int n = -126; n <= 127; ++n) EXPECT_EQ(simd_exp2(static_cast<float>(n)), std::ldexp(1.0F, n)) << n;
  EXPECT_EQ(simd_exp2(-127.0F), 0.0F);
  EXPECT_EQ(simd_exp2(-200.5F), 0.0F);
  EXPECT_EQ(simd_exp2(-kInfinity), 0.0F);
}

TEST(SimdMath, log2_is_within_2_units_in_the_last_place) {
  const Errors errors = worst(
      simd_log2<float>, [](double x) { return std::log2(x); }, 1.2e-38F, 3.4e38F);
  EXPECT_LT(errors.relative, 2.0e-7) << "at " << errors.at;
  for (int n = -126; n <= 127; ++n) EXPECT_EQ(simd_log2(std::ldexp(1.0F, n)), static_cast<float>(n)) << n;
}

TEST(SimdMath, vectors_and_floats_give_the_same_results) {
  for (int i = -40; i < 40; ++i) {
    const float x = static_cast<float>(i) * 1.37F;
    EXPECT_NEAR(simd_exp2(broadcast(x))[kLanes - 1], simd_exp2(x), 1e-7F * simd_exp2(x));
    const float y = simd_exp2(x);
    EXPECT_NEAR(simd_log2(broadcast(y))[kLanes - 1], x, 1e-6F);
  }
}

TEST(SimdMath, tanh_is_within_3_units_in_the_last_place) {
  const Errors errors = worst(
      simd_tanh, [](double x) { return std::tanh(x); }, -kInfinity, kInfinity);
  EXPECT_LT(errors.relative, 2.4e-7) << "at " << errors.at;
  EXPECT_LT(errors.absolute, 1.2e-7);
}

TEST(SimdMath, erf_is_within_3_units_in_the_last_place) {
  const Errors errors = worst(
      simd_erf, [](double x) { return std::erf(x); }, -kInfinity, kInfinity);
  EXPECT_LT(errors.relative, 2.4e-7) << "at " << errors.at;
  EXPECT_LT(errors.absolute, 1.2e-7);
}

TEST(SimdMath, odd_functions_keep_the_sign_and_reach_one) {
  for (const auto& f : {simd_tanh, simd_erf}) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(f(-0.0F)), std::bit_cast<std::uint32_t>(-0.0F));
    EXPECT_EQ(f(kInfinity), 1.0F);
    EXPECT_EQ(f(-kInfinity), -1.0F);
    EXPECT_EQ(f(30.0F), 1.0F);
    for (const float x : {1e-30F, 0.3F, 0.8F, 1.7F, 5.0F}) EXPECT_EQ(f(-x), -f(x)) << x;
  }
}

TEST(SimdMath, nan_passes_through_whatever_its_payload) {
  const float odd_nan = std::bit_cast<float>(0xFFC0DEADU);
  for (const auto& f : {simd_exp, simd_exp2<float>, simd_log2<float>, simd_tanh, simd_erf}) {
    EXPECT_TRUE(std::isnan(f(kNan)));
    EXPECT_TRUE(std::isnan(f(odd_nan)));
  }
}

}  // namespace
}  // namespace polaron::cpu

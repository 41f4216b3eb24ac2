// Newton-Schulz in bf16 on every unit, against double precision that is rounded to bf16 in the same places, against
// the map that is meant, and the inputs on which it goes wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/matrix_kernels.h"
#include "ops/gemm_units.h"
#include "ops/matrix_reference.h"
#include "ops/newton_schulz_reference.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

class Bf16NewtonSchulz : public OnUnits {
 protected:
  Dense run(const NewtonSchulzSpec& spec, const Dense& input, int threads = 1) const {
    std::vector<float> x = floats(input);
    // Scratch arrives as it happens to be, wherever it happens to be.
    std::vector<float> scratch(
        static_cast<std::size_t>(cpu::newton_schulz_bf16_floats(unit(), input.rows, input.cols, threads) + 1),
        std::nanf(""));
    cpu::newton_schulz_bf16(unit(), spec, input.rows, input.cols, x.data(), scratch.data() + 1, threads);
    return dense(x, input.rows, input.cols);
  }
};

TEST_P(Bf16NewtonSchulz, a_step_rounds_where_the_contract_says) {
  // A and A A are sums of integers that fp32 holds exactly, so A and B have the reference's bits. Sums of B X may be
  // inexact in the 24th bit, which shows where a sum lies that close to a boundary of rounding to 8 bits: once in
  // thousands. With one rounding more or less a third of the elements would differ.
  NewtonSchulzSpec spec = bf16_spec("jordan", 1);
  spec.table = {{3.5F, -4.75F, 2.0F}};
  spec.norm_eps = 0.0F;
  // Several chunks of the depth, and of columns.
  const std::int64_t shapes[][2] = {{1, 1}, {1, 4}, {16, 64}, {33, 70}, {65, 65}, {64, 1056}, {400, 410}};
  for (const auto& [rows, cols] : shapes) {
    if (rows > 100 && GetParam() == Unit::emulated_amx) continue;  // takes seconds
    const Dense x = signs(rows, cols), expected = rounded_newton_schulz_of(spec, x), actual = run(spec, x);
    std::int64_t different = 0;
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      different += actual.data[i] != expected.data[i];
      EXPECT_NEAR(actual.data[i], expected.data[i], std::abs(expected.data[i]) / 127.0) << i;
    }
    EXPECT_LE(different, rows * cols / 1000) << rows << "x" << cols;
  }
}

// The slope of all steps at 0.
double slope(const NewtonSchulzSpec& spec) {
  double product = 1.0;
  for (int step = 0; step < spec.steps; ++step) product *= static_cast<double>(row_at(spec, step).a);
  return product;
}

TEST_P(Bf16NewtonSchulz, every_table_agrees_with_double_precision_rounded_alike) {
  // Most results have the reference's bits. Where sums in fp32 and in double fall on two sides of a rounding boundary,
  // an element of about the matrix's mean size is off by 2^-8 of itself, and where x has no other component in that
  // direction the steps that follow enlarge that by their slope.
  constexpr std::int64_t kRows = 30, kCols = 31;
  for (const auto& [spectrum, x] : hard_matrices(kRows, kCols)) {
    for (const std::string_view table : newton_schulz_names()) {
      if (table == "torch") continue;  // differs from jordan in its divisor alone
      const NewtonSchulzSpec spec = bf16_spec(table);
      const double tolerance = slope(spec) / 256.0 / std::sqrt(static_cast<double>(kRows * kCols));
      EXPECT_LT(relative_error(run(spec, x), rounded_newton_schulz_of(spec, x)), tolerance)
          << table << ", " << spectrum;
    }
  }
}

TEST_P(Bf16NewtonSchulz, a_matrix_without_small_singular_values_comes_out_as_in_exact_arithmetic) {
  // Three roundings a step, each of 2^-9 relative at most, in five steps; in the band in which singular values stay
  // from then on, a step hardly enlarges errors.
  std::vector<double> values;
  for (int i = 0; i < 33; ++i) values.push_back(1.0 - 0.028 * i);
  const Dense x = rounded(with_spectrum(33, 70, values, 1));
  for (const std::string_view table : newton_schulz_names()) {
    const NewtonSchulzSpec spec = bf16_spec(table);
    const Dense actual = run(spec, x);
    EXPECT_LT(relative_error(actual, newton_schulz_of(spec, x)), 15.0 / 512.0) << table;
    // The one that converges.
    if (table == "classic") {
      EXPECT_LT(relative_error(actual, polar(x, 0.0)), 3.0 / 512.0);
    }
  }
}

TEST_P(Bf16NewtonSchulz, singular_values_end_in_the_published_bands_but_for_rounding) {
  struct Band {
    const char* table;
    double from, low, high;
  };
  const Band bands[] = {{"jordan", 0.01, 0.681, 1.135},
                        {"you", 0.01, 0.977, 1.033},
                        {"polar_express", 0.001, 0.858, 1.142},
                        {"classic", 0.001, 0.98, 1.001},
                        {"torch", 0.01, 0.681, 1.135}};
  for (const Band& band : bands) {
    NewtonSchulzSpec spec = bf16_spec(band.table);
    spec.norm_factor = 1.0F;
    spec.norm_eps = 0.0F;
    for (double sigma = band.from; sigma < 1.0; sigma *= 1.5) {
      Dense x(2, 2);
      x(0, 0) = sigma;
      x(1, 1) = std::sqrt(1.0 - sigma * sigma);
      const double value = run(spec, rounded(x))(0, 0);
      EXPECT_GE(value, band.low - 6.0 / 512.0) << band.table << " at " << sigma;
      EXPECT_LE(value, band.high + 6.0 / 512.0) << band.table << " at " << sigma;
    }
  }
}

TEST_P(Bf16NewtonSchulz, zero_stays_exactly_zero) {
  for (const std::string_view table : newton_schulz_names()) {
    EXPECT_EQ(run(bf16_spec(table), Dense(8, 40)).data, Dense(8, 40).data) << table;
  }
}

TEST_P(Bf16NewtonSchulz, the_scale_of_the_input_does_not_matter) {
  const Dense x = rounded(gaussian(20, 50, 3));
  NewtonSchulzSpec spec = bf16_spec("polar_express");
  spec.norm_eps = 0.0F;
  const Dense expected = run(spec, x);
  for (const double factor : {0x1p-100, 0x1p-10, 0x1p100}) {  // squares of the outer ones leave fp32's range
    EXPECT_EQ(run(spec, scaled(x, factor)).data, expected.data) << factor;
  }
}

TEST_P(Bf16NewtonSchulz, any_number_of_threads_gives_the_same_bits) {
  const Dense x = rounded(gaussian(70, 600, 4));
  const NewtonSchulzSpec spec = bf16_spec("polar_express", 1);
  const Dense expected = run(spec, x);
  for (const int threads : {2, 3, 7}) EXPECT_EQ(run(spec, x, threads).data, expected.data) << threads;
}

INSTANTIATE_TEST_SUITE_P(Units, Bf16NewtonSchulz, kAllUnits, name_of_unit);

TEST(Bf16NewtonSchulzOp, the_matrices_of_a_group_do_not_see_each_other) {
  constexpr std::int64_t kRows = 19, kCols = 45, kCount = 7, kElements = kRows * kCols;
  const NewtonSchulzSpec spec = bf16_spec("jordan");
  const std::vector<float> stack = random_floats(kCount * kElements, 6);
  std::vector<float> alone;
  for (std::int64_t i = 0; i < kCount; ++i) {
    const std::vector<float> x(stack.begin() + i * kElements, stack.begin() + (i + 1) * kElements);
    const std::vector<float> result = MatrixOpsHarness().newton_schulz({1, kRows, kCols}, spec, x);
    alone.insert(alone.end(), result.begin(), result.end());
    // Not what fp32 would give, and close to it.
    const Dense expected = rounded_newton_schulz_of(spec, dense(x, kRows, kCols));
    EXPECT_LT(relative_error(dense(result, kRows, kCols), expected), 5e-3);
  }
  for (const int threads : {1, 3}) {
    const Threads guard(threads);
    MatrixOpsHarness harness;
    EXPECT_EQ(harness.newton_schulz({kCount, kRows, kCols}, spec, stack), alone) << threads;
    std::vector<float> bad = stack;
    bad[2 * kElements + 17] = std::numeric_limits<float>::quiet_NaN();
    bad[4 * kElements + 17] = std::numeric_limits<float>::infinity();
    const std::vector<float> result = harness.newton_schulz({kCount, kRows, kCols}, spec, bad);
    for (std::int64_t i = 0; i < kCount; ++i) {
      const auto first = result.begin() + i * kElements, last = first + kElements;
      if (i == 2 || i == 4) {
        EXPECT_TRUE(std::any_of(first, last, [](float value) { return std::isnan(value); })) << i;
      } else {
        EXPECT_TRUE(std::equal(first, last, alone.begin() + i * kElements)) << i;
      }
    }
  }
}

TEST(Bf16NewtonSchulzOp, a_matrix_shared_by_threads_has_the_bits_of_one_thread) {
  constexpr std::int64_t kRows = 300, kCols = 900;  // too large to be given to one of three threads
  const NewtonSchulzSpec spec = bf16_spec("polar_express", 1);
  const std::vector<float> x = random_floats(kRows * kCols, 8);
  std::vector<float> results[2];
  for (const int threads : {1, 3}) {
    const Threads guard(threads);
    results[threads / 2] = MatrixOpsHarness().newton_schulz({1, kRows, kCols}, spec, x);
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(Bf16NewtonSchulzOp, a_tall_parameter_is_stepped_along_its_transposes_result) {
  constexpr std::int64_t kRows = 70, kCols = 33;
  const NewtonSchulzSpec spec = bf16_spec("jordan");
  MatrixOpsHarness harness;
  MatrixOps& ops = harness.ops();
  std::vector<float> gradient = random_floats(kRows * kCols, 9), stack(gradient.size());
  std::vector<float> parameter(gradient.size(), 0.0F);
  const MatrixView from{gradient.data(), kRows, kCols, kCols}, to{parameter.data(), kRows, kCols, kCols};
  float* const no_momentum = nullptr;
  const float one = 1.0F;
  ops.momentum_to_stack(harness.stream(), {MomentumKind::none, 0.0F, false}, {}, std::span(&from, 1),
                        std::span(&no_momentum, 1), stack.data());
  stack = harness.newton_schulz({1, kCols, kRows}, spec, stack);
  ops.update_dense(harness.stream(), {-1.0F, 0.0F}, {}, stack.data(), std::span(&one, 1), std::span(&to, 1));
  const Dense expected = rounded_newton_schulz_of(spec, transposed(dense(gradient, kRows, kCols)));
  EXPECT_LT(relative_error(transposed(dense(parameter, kRows, kCols)), expected), 5e-3);
}

}  // namespace
}  // namespace polaron::test

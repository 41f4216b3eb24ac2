// Newton-Schulz: the named tables, the op against double precision, and the inputs on which orthogonalization goes
// wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/matrix_reference.h"
#include "ops/reference.h"
#include "optim/newton_schulz_tables.h"

namespace polaron::test {
namespace {

// Every step multiplies rounding errors in directions that x lacks by up to a; classic's twelve doublings carry them
// to 4096 units.
double tolerance_of(std::string_view table) { return table == "classic" ? 8e-4 : 2e-4; }

// p_steps(...p_1(sigma)) of a singular value, in double.
double scalar_map(const NewtonSchulzSpec& spec, double sigma) {
  for (int step = 0; step < spec.steps; ++step) {
    const NewtonSchulzRow& row = spec.table[std::min(static_cast<std::size_t>(step), spec.table.size() - 1)];
    const double square = sigma * sigma;
    sigma *= static_cast<double>(row.a) + square * (static_cast<double>(row.b) + square * static_cast<double>(row.c));
  }
  return sigma;
}

// What the op makes of the singular value sigma of a matrix of norm 1.
double mapped(MatrixOpsHarness& harness, NewtonSchulzSpec spec, double sigma) {
  spec.norm_factor = 1.0F;
  spec.norm_eps = 0.0F;
  const std::vector<float> x = {static_cast<float>(sigma), 0.0F, 0.0F,
                                static_cast<float>(std::sqrt(1.0 - sigma * sigma))};
  return static_cast<double>(harness.newton_schulz({1, 2, 2}, spec, x)[0]);
}

TEST(NewtonSchulzTables, every_name_gives_its_table) {
  for (const std::string_view name : newton_schulz_names()) {
    const NewtonSchulzSpec spec = newton_schulz_spec(name);
    EXPECT_EQ(spec.steps, name == "classic" ? 12 : 5) << name;
    EXPECT_EQ(spec.table.size(), name == "you" || name == "polar_express" ? 5U : 1U) << name;
    EXPECT_EQ(spec.clamp_norm, name == "torch") << name;
    EXPECT_FLOAT_EQ(spec.norm_factor, name == "polar_express" ? 1.02F : 1.0F) << name;
    EXPECT_FLOAT_EQ(spec.norm_eps, name == "polar_express" ? 1e-6F : 1e-7F) << name;
  }
  EXPECT_EQ(newton_schulz_names().front(), "polar_express");
  EXPECT_EQ(newton_schulz_spec("jordan", 8).steps, 8);
}

TEST(NewtonSchulzTables, an_unknown_name_is_answered_with_the_known_ones) {
  try {
    newton_schulz_spec("jordon");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    for (const std::string_view name : newton_schulz_names()) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << name;
    }
  }
  EXPECT_THROW(newton_schulz_spec("jordan", -1), Error);
}

TEST(NewtonSchulzTables, singular_values_end_in_the_published_bands) {
  struct Band {
    const char* table;
    int steps;
    double from, low, high, slope;  // values in [from, 1] end in [low, high]; slope at 0
  };
  // What the tables promise, each widened by its last digit.
  const Band bands[] = {{"jordan", 5, 0.01, 0.681, 1.135, 485.0},         {"jordan", 5, 0.003, 0.681, 1.203, 485.0},
                        {"jordan", 8, 0.001, 0.681, 1.135, 19800.0},      {"you", 5, 0.01, 0.977, 1.033, 493.0},
                        {"polar_express", 5, 0.001, 0.858, 1.142, 990.0}, {"classic", 12, 0.001, 0.98, 1.001, 4096.0},
                        {"torch", 5, 0.01, 0.681, 1.135, 485.0}};
  MatrixOpsHarness harness;
  for (const Band& band : bands) {
    const NewtonSchulzSpec spec = newton_schulz_spec(band.table, band.steps);
    for (double sigma = band.from; sigma < 1.0; sigma *= 1.013) {
      const double value = mapped(harness, spec, sigma);
      EXPECT_GE(value, band.low) << band.table << " at " << sigma;
      EXPECT_LE(value, band.high) << band.table << " at " << sigma;
      EXPECT_NEAR(value, scalar_map(spec, sigma), 2e-5 * band.slope / 485.0) << band.table << " at " << sigma;
    }
    EXPECT_NEAR(mapped(harness, spec, 1e-6) / 1e-6, band.slope, 0.01 * band.slope) << band.table;
  }
}

TEST(NewtonSchulzTables, jordans_map_has_the_values_of_the_paper) {
  const double five[][2] = {{1e-4, .04847}, {1e-3, .47054}, {5e-3, 1.15437}, {.01, .69892}, {.02, .68183},
                            {.05, .75812},  {.1, .71212},   {.2, .74677},    {.3, 1.07959}, {.5, .76544},
                            {.7, 1.12032},  {.9, .68201},   {1.0, .69644}};
  const double eight[][2] = {{1e-4, 1.20233}, {1e-3, .91793}, {.01, 1.08600},
                             {.1, 1.10816},   {.5, 1.13058},  {1.0, 1.08102}};
  MatrixOpsHarness harness;
  for (const auto& [sigma, value] : five) {
    EXPECT_NEAR(mapped(harness, newton_schulz_spec("jordan"), sigma), value, 2e-5) << sigma;
  }
  for (const auto& [sigma, value] : eight) {
    EXPECT_NEAR(mapped(harness, newton_schulz_spec("jordan", 8), sigma), value, 1e-4) << sigma;
  }
  // Fifty steps are chaotic within their band, and bring into it what is not exactly 0.
  for (double sigma = 1e-20; sigma < 1.0; sigma *= sigma < 1e-3 ? 9.7 : 1.1) {
    const double value = mapped(harness, newton_schulz_spec("jordan", 50), sigma);
    EXPECT_GT(value, 0.681) << sigma;
    EXPECT_LT(value, 1.135) << sigma;
  }
}

TEST(NewtonSchulz, every_table_agrees_with_double_precision_on_hard_matrices) {
  MatrixOpsHarness harness;
  // About square, and wide enough for runs of steps on the Gram matrix; none a multiple of 8.
  const std::int64_t shapes[][2] = {{66, 67}, {66, 201}};
  for (const auto& [rows, cols] : shapes) {
    for (const auto& [spectrum, x] : hard_matrices(rows, cols)) {
      for (const std::string_view table : newton_schulz_names()) {
        if (table == "torch") continue;  // differs from jordan in its divisor alone
        const NewtonSchulzSpec spec = newton_schulz_spec(table);
        const Dense actual = dense(harness.newton_schulz({1, rows, cols}, spec, floats(x)), rows, cols);
        EXPECT_LT(relative_error(actual, newton_schulz_of(spec, x)), tolerance_of(table))
            << table << ", " << spectrum << ", " << rows << "x" << cols;
      }
    }
  }
}

TEST(NewtonSchulz, the_last_row_repeats_beyond_the_table) {
  MatrixOpsHarness harness;
  const Dense x = rounded(gaussian(20, 70, 1));
  for (const int steps : {1, 2, 6, 7, 9}) {
    const NewtonSchulzSpec spec = newton_schulz_spec("polar_express", steps);
    const Dense actual = dense(harness.newton_schulz({1, 20, 70}, spec, floats(x)), 20, 70);
    EXPECT_LT(relative_error(actual, newton_schulz_of(spec, x)), 2e-5) << steps;
  }
}

TEST(NewtonSchulz, any_size_is_fine) {
  MatrixOpsHarness harness;
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
  const std::int64_t shapes[][2] = {{1, 1}, {1, 2}, {1, 65}, {2, 2}, {3, 9}, {15, 17}, {161, 163}, {161, 490}};
  for (const auto& [rows, cols] : shapes) {
    const Dense x = rounded(gaussian(rows, cols, 2));
    const Dense actual = dense(harness.newton_schulz({1, rows, cols}, spec, floats(x)), rows, cols);
    EXPECT_LT(relative_error(actual, newton_schulz_of(spec, x)), 5e-5) << rows << "x" << cols;
  }
}

TEST(NewtonSchulz, zero_stays_exactly_zero) {
  MatrixOpsHarness harness;
  for (const std::string_view table : newton_schulz_names()) {
    for (const std::int64_t cols : {8, 40}) {
      const std::vector<float> x(static_cast<std::size_t>(3 * 8 * cols), 0.0F);
      EXPECT_EQ(harness.newton_schulz({3, 8, cols}, newton_schulz_spec(table), x), x) << table;
    }
  }
}

TEST(NewtonSchulz, a_rank_one_matrix_keeps_its_sign) {
  MatrixOpsHarness harness;
  for (const std::string_view table : newton_schulz_names()) {
    for (const std::int64_t cols : {24, 100}) {
      const Dense x = rounded(with_spectrum(24, cols, {3.0}, 5));
      const Dense o = dense(harness.newton_schulz({1, 24, cols}, newton_schulz_spec(table), floats(x)), 24, cols);
      const double along = inner(o, x) / 3.0;
      EXPECT_GT(along, 0.65) << table;
      EXPECT_LT(along, 1.2) << table;
      EXPECT_LT(relative_error(o, scaled(x, along / 3.0)), tolerance_of(table)) << table;
    }
  }
}

TEST(NewtonSchulz, the_scale_of_the_input_does_not_matter) {
  MatrixOpsHarness harness;
  const Dense x = rounded(gaussian(30, 50, 3));
  for (const std::string_view table : newton_schulz_names()) {
    NewtonSchulzSpec spec = newton_schulz_spec(table);
    spec.norm_eps = 0.0F;  // the one thing in a table that knows a scale
    const Dense expected = newton_schulz_of(spec, x);
    for (const double factor : {1e-30, 1e-3, 1e3, 1e18, 1e36}) {  // squares of the outer ones leave fp32's range
      const Dense multiple = rounded(scaled(x, factor));
      const Dense actual = dense(harness.newton_schulz({1, 30, 50}, spec, floats(multiple)), 30, 50);
      EXPECT_LT(relative_error(actual, expected), 2e-5) << table << " times " << factor;
    }
  }
}

TEST(NewtonSchulz, torchs_table_divides_by_the_larger_of_norm_and_eps) {
  MatrixOpsHarness harness;
  const Dense small = rounded(scaled(with_spectrum(10, 12, {1.0, 0.5}, 4), 1e-9));
  for (const char* table : {"jordan", "torch"}) {
    const NewtonSchulzSpec spec = newton_schulz_spec(table);
    const Dense actual = dense(harness.newton_schulz({1, 10, 12}, spec, floats(small)), 10, 12);
    EXPECT_LT(relative_error(actual, newton_schulz_of(spec, small)), 5e-6) << table;
  }
}

TEST(NewtonSchulz, the_matrices_of_a_group_do_not_see_each_other) {
  constexpr std::int64_t kRows = 19, kCols = 45, kCount = 7;
  for (const int threads : {1, 2, 3}) {
    const Threads guard(threads);
    MatrixOpsHarness harness;
    const NewtonSchulzSpec spec = newton_schulz_spec("jordan");
    const std::vector<float> stack = random_floats(kCount * kRows * kCols, 6);
    const std::vector<float> together = harness.newton_schulz({kCount, kRows, kCols}, spec, stack);
    for (std::int64_t first = 0; first + threads <= kCount; ++first) {  // as many as threads: one matrix a thread
      const auto begin = stack.begin() + first * kRows * kCols, end = begin + threads * kRows * kCols;
      const std::vector<float> part = harness.newton_schulz({threads, kRows, kCols}, spec, {begin, end});
      EXPECT_TRUE(std::equal(part.begin(), part.end(), together.begin() + first * kRows * kCols)) << first;
    }
  }
}

TEST(NewtonSchulz, one_matrix_on_many_threads_agrees_with_double_precision) {
  const Threads guard(3);
  MatrixOpsHarness harness;
  for (const std::int64_t cols : {200, 700}) {
    const Dense x = rounded(gaussian(200, cols, 8));
    const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
    const Dense actual = dense(harness.newton_schulz({1, 200, cols}, spec, floats(x)), 200, cols);
    EXPECT_LT(relative_error(actual, newton_schulz_of(spec, x)), 5e-5) << cols;
  }
}

TEST(NewtonSchulz, a_matrix_that_is_not_finite_spoils_only_itself) {
  MatrixOpsHarness harness;
  const NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> stack = random_floats(4 * 10 * 40, 9);
    const std::vector<float> good = harness.newton_schulz({4, 10, 40}, spec, stack);
    stack[2 * 400 + 17] = bad;
    const std::vector<float> result = harness.newton_schulz({4, 10, 40}, spec, stack);
    EXPECT_TRUE(std::equal(good.begin(), good.begin() + 800, result.begin()));
    EXPECT_TRUE(std::equal(good.begin() + 1200, good.end(), result.begin() + 1200));
    EXPECT_TRUE(std::any_of(result.begin() + 800, result.begin() + 1200, [](float v) { return std::isnan(v); }));
  }
}

}  // namespace
}  // namespace polaron::test

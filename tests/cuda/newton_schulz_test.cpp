// Newton-Schulz on every machine: fp32 against double precision, bf16 against double precision that is rounded in the
// same places.
#include "matrix_family.h"
#include "ops/newton_schulz_reference.h"

namespace polaron::test {
namespace {

// Every step multiplies rounding errors in directions that x lacks by up to a; classic's twelve doublings carry them
// to 4096 units.
double tolerance_of(std::string_view table) { return table == "classic" ? 8e-4 : 2e-4; }

// The hard matrices of a shape, as one stack.
struct HardStack {
  std::vector<std::pair<std::string, Dense>> matrices;
  std::vector<float> values;
  StackShape shape;

  HardStack(std::int64_t rows, std::int64_t cols) : matrices(hard_matrices(rows, cols)) {
    std::vector<Dense> all;
    for (const auto& [name, x] : matrices) all.push_back(x);
    values = stacked(all);
    shape = {static_cast<std::int64_t>(matrices.size()), rows, cols};
  }
};

class NewtonSchulzFamily : public MatrixFamily {
 protected:
  Dense run(const NewtonSchulzSpec& spec, const Dense& x) const {
    return dense(on().newton_schulz({1, x.rows, x.cols}, spec, floats(x)), x.rows, x.cols);
  }
};

TEST_P(NewtonSchulzFamily, every_table_agrees_with_double_precision_on_hard_matrices) {
  // About square, and wide enough for runs of steps on the Gram matrix; none a multiple of 8.
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{34, 35}, {34, 103}}) {
    const HardStack stack(rows, cols);
    for (const std::string_view table : newton_schulz_names()) {
      const NewtonSchulzSpec spec = newton_schulz_spec(table);
      const std::vector<float> result = on().newton_schulz(stack.shape, spec, stack.values);
      for (std::size_t i = 0; i < stack.matrices.size(); ++i) {
        const auto& [spectrum, x] = stack.matrices[i];
        EXPECT_LT(
            relative_error(matrix_of(result, static_cast<std::int64_t>(i), rows, cols), newton_schulz_of(spec, x)),
            tolerance_of(table))
            << table << ", " << spectrum << ", " << rows << "x" << cols;
      }
    }
  }
}

TEST_P(NewtonSchulzFamily, any_size_and_number_of_steps_is_fine) {
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {1, 2}, {1, 65}, {3, 9}, {16, 64}, {15, 17}, {65, 200}}) {
    const Dense x = rounded(gaussian(rows, cols, 2));
    for (const int steps : {1, 2, 6, 7}) {
      const NewtonSchulzSpec spec = newton_schulz_spec("polar_express", steps);
      EXPECT_LT(relative_error(run(spec, x), newton_schulz_of(spec, x)), 5e-5) << rows << "x" << cols;
    }
  }
}

TEST_P(NewtonSchulzFamily, bf16_rounds_where_the_contract_says) {
  // A and A A are sums of integers that fp32 holds exactly, so A and B have the reference's bits. Sums of B X may be
  // inexact in the 24th bit, which shows where a sum lies that close to a boundary of rounding to 8 bits: once in
  // thousands. With one rounding more or less a third of the elements would differ.
  NewtonSchulzSpec spec = bf16_spec("jordan", 1);
  spec.table = {{3.5F, -4.75F, 2.0F}};
  spec.norm_eps = 0.0F;
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {1, 4}, {16, 64}, {33, 70}, {65, 65}, {64, 264}}) {
    const Dense x = signs(rows, cols), expected = rounded_newton_schulz_of(spec, x), actual = run(spec, x);
    std::int64_t different = 0;
    for (std::size_t i = 0; i < x.data.size(); ++i) {
      different += actual.data[i] != expected.data[i];
      EXPECT_NEAR(actual.data[i], expected.data[i], std::abs(expected.data[i]) / 127.0) << i;
    }
    EXPECT_LE(different, rows * cols / 1000) << rows << "x" << cols;
  }
}

TEST_P(NewtonSchulzFamily, every_table_in_bf16_agrees_with_double_precision_rounded_alike) {
  // Where sums in fp32 and in double fall on two sides of a rounding boundary, an element of about the matrix's mean
  // size is off by 2^-8 of itself, and where x has no other component in that direction the steps that follow enlarge
  // that by their slope.
  constexpr std::int64_t kRows = 30, kCols = 31;
  const HardStack stack(kRows, kCols);
  for (const std::string_view table : newton_schulz_names()) {
    const NewtonSchulzSpec spec = bf16_spec(table);
    double slope = 1.0;
    for (int step = 0; step < spec.steps; ++step) slope *= static_cast<double>(row_at(spec, step).a);
    const std::vector<float> result = on().newton_schulz(stack.shape, spec, stack.values);
    for (std::size_t i = 0; i < stack.matrices.size(); ++i) {
      const auto& [spectrum, x] = stack.matrices[i];
      EXPECT_LT(relative_error(matrix_of(result, static_cast<std::int64_t>(i), kRows, kCols),
                               rounded_newton_schulz_of(spec, x)),
                slope / 256.0 / std::sqrt(static_cast<double>(kRows * kCols)))
          << table << ", " << spectrum;
    }
  }
}

TEST_P(NewtonSchulzFamily, zero_stays_exactly_zero) {
  for (const std::string_view table : newton_schulz_names()) {
    for (const DType type : {DType::f32, DType::bf16}) {
      NewtonSchulzSpec spec = newton_schulz_spec(table);
      spec.dtype = type;
      for (const std::int64_t cols : {8, 41}) {
        const std::vector<float> x(static_cast<std::size_t>(2 * 8 * cols), 0.0F);
        EXPECT_EQ(on().newton_schulz({2, 8, cols}, spec, x), x) << table;
      }
    }
  }
}

TEST_P(NewtonSchulzFamily, a_rank_one_matrix_keeps_its_sign) {
  for (const std::string_view table : newton_schulz_names()) {
    for (const std::int64_t cols : {24, 100}) {
      const Dense x = rounded(with_spectrum(24, cols, {3.0}, 5));
      const Dense o = run(newton_schulz_spec(table), x);
      const double along = inner(o, x) / 3.0;
      EXPECT_GT(along, 0.65) << table;
      EXPECT_LT(along, 1.2) << table;
      EXPECT_LT(relative_error(o, scaled(x, along / 3.0)), tolerance_of(table)) << table;
    }
  }
}

TEST_P(NewtonSchulzFamily, the_scale_of_the_input_does_not_matter) {
  const Dense x = rounded(gaussian(30, 50, 3));
  for (const DType type : {DType::f32, DType::bf16}) {
    NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
    spec.norm_eps = 0.0F;  // the one thing in a table that knows a scale
    spec.dtype = type;
    const Dense expected = run(spec, x);
    for (const double factor : {0x1p-100, 0x1p-10, 0x1p10, 0x1p120})  // squares of the outer ones leave fp32's range
      EXPECT_EQ(run(spec, scaled(x, factor)).data, expected.data) << factor;
  }
}

TEST_P(NewtonSchulzFamily, torchs_table_divides_by_the_larger_of_norm_and_eps) {
  const Dense small = rounded(scaled(with_spectrum(10, 12, {1.0, 0.5}, 4), 1e-9));
  for (const char* table : {"jordan", "torch"}) {
    const NewtonSchulzSpec spec = newton_schulz_spec(table);
    EXPECT_LT(relative_error(run(spec, small), newton_schulz_of(spec, small)), 1e-4) << table;
  }
}

TEST_P(NewtonSchulzFamily, a_matrix_that_is_not_finite_spoils_only_itself) {
  for (const DType type : {DType::f32, DType::bf16}) {
    NewtonSchulzSpec spec = newton_schulz_spec("polar_express");
    spec.dtype = type;
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
      std::vector<float> stack = random_floats(4 * 10 * 40, 9);
      const std::vector<float> good = on().newton_schulz({4, 10, 40}, spec, stack);
      stack[2 * 400 + 17] = bad;
      const std::vector<float> result = on().newton_schulz({4, 10, 40}, spec, stack);
      EXPECT_TRUE(std::equal(good.begin(), good.begin() + 800, result.begin()));
      EXPECT_TRUE(std::equal(good.begin() + 1200, good.end(), result.begin() + 1200));
      EXPECT_TRUE(std::any_of(result.begin() + 800, result.begin() + 1200, [](float v) { return std::isnan(v); }));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, NewtonSchulzFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaNewtonSchulz, gives_the_same_bits_for_every_order_of_threads) {
  expect_same_bits_in_all_orders([](const Machine& machine) {
    const MatrixOpsOn on(machine);
    const std::vector<float> x = random_floats(2 * 130 * 140, 1);  // several chunks a matrix
    std::vector<float> all = on.newton_schulz({2, 130, 140}, newton_schulz_spec("jordan", 1), x);
    const std::vector<float> low = on.newton_schulz({2, 130, 140}, bf16_spec("jordan", 1), x);
    all.insert(all.end(), low.begin(), low.end());
    const auto bytes = std::as_bytes(std::span(all));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  });
}

}  // namespace
}  // namespace polaron::test

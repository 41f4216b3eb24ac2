// LinearOps on bf16 against plain loops in double precision over the rounded operands: the error is that of fp32 sums
// and one rounding.
#include <cmath>
#include <memory>
#include <tuple>

#include "cpu/linear.h"
#include "ops/activation_reference.h"
#include "ops/bf16_matrix.h"
#include "ops/gemm_units.h"
#include "ops/linear_sizes.h"
#include "ops/same_bits.h"

namespace polaron::test {
namespace {

const LayerSizes kSizes[] = {{1, 1, 1}, {1, 33, 3}, {3, 5, 1}, {7, 301, 5}, {33, 5, 171}, {64, 64, 64}, {65, 33, 130}};
const Activation kActivations[] = {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2, Activation::swiglu};

// A product and what fp32 sums of it may be off by.
struct Expected {
  Doubles values, errors;
  double& value(std::int64_t i) { return values[static_cast<std::size_t>(i)]; }
  double& error(std::int64_t i) { return errors[static_cast<std::size_t>(i)]; }
};

// sum over k of a(i, k) b(k, j) + start(i, j).
template <class A, class B, class Start>
Expected product(std::int64_t rows, std::int64_t cols, std::int64_t depth, A&& a, B&& b, Start&& start) {
  Expected result;
  const double unit = (8.0 + 2.0 * std::sqrt(static_cast<double>(depth))) * std::ldexp(1.0, -24);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      double sum = start(i, j), size = std::abs(sum);
      for (std::int64_t k = 0; k < depth; ++k) {
        const double term = a(i, k) * b(k, j);
        sum += term;
        size += std::abs(term);
      }
      result.values.push_back(sum);
      result.errors.push_back(size * unit);
    }
  }
  return result;
}

void expect_within(const Matrix& actual, const Expected& expected, const std::string& what) {
  const Doubles values = actual.values();
  for (std::size_t i = 0; i < values.size(); ++i)
    ASSERT_NEAR(values[i], expected.values[i], expected.errors[i]) << what;
}

class Bf16Linear : public OnUnits {
 protected:
  void SetUp() override {
    OnUnits::SetUp();
    if (!IsSkipped()) ops_ = cpu::make_linear_ops(cpu::GemmEngine::tiles, unit());
  }
  std::unique_ptr<LinearOps> ops_;
  HostStream stream_;
};

TEST_P(Bf16Linear, forward_is_x_times_transposed_weight_plus_bias_rounded_once) {
  for (const LayerSizes& s : kSizes) {
    Bf16Matrix x = Bf16Matrix::random(s.rows, s.in, 1, 1.0, 0.0, 3),
               weight = Bf16Matrix::random(s.out, s.in, 2, 1.0, 0.0, 2);
    Matrix bias = Matrix::random(1, s.out, 3);
    for (const bool biased : {false, true}) {
      Bf16Matrix out(s.rows, s.out, 7);
      ops_->forward(stream_, x.tensor(), weight.tensor(), biased ? bias.tensor() : Tensor{}, Activation::none,
                    out.tensor(), {});
      const Expected expected = product(
          s.rows, s.out, s.in, [&](auto i, auto k) { return std::as_const(x).at(i, k); },
          [&](auto k, auto j) { return std::as_const(weight).at(j, k); },
          [&](auto, auto j) { return biased ? static_cast<double>(bias.at(0, j)) : 0.0; });
      expect_rounded(out, expected.values, expected.errors, "forward, " + describe(s));
    }
  }
}

// The activation of what is stored, not of what it was rounded from: `activate` has to find the same.
TEST_P(Bf16Linear, forward_activates_the_rounded_pre_activation_and_activate_finds_the_same_bits) {
  for (const Activation activation : kActivations) {
    const bool gated = activation == Activation::swiglu;
    for (const LayerSizes& s : kSizes) {
      const std::int64_t out_cols = gated ? 2 * s.out : s.out;
      Bf16Matrix x = Bf16Matrix::random(s.rows, s.in, 4, 1.0 / std::sqrt(static_cast<double>(s.in)), 0.0, 1);
      Bf16Matrix weight = Bf16Matrix::random(out_cols, s.in, 5, 1.0, 0.0, 4);
      Matrix bias = Matrix::random(1, out_cols, 6);
      Bf16Matrix out(s.rows, out_cols, 3), activated(s.rows, s.out, 2), again(s.rows, s.out, 5);
      ops_->forward(stream_, x.tensor(), weight.tensor(), bias.tensor(), activation, out.tensor(), activated.tensor());
      const std::string what = std::string(name_of(activation)) + ", " + describe(s);
      const Expected pre = product(
          s.rows, out_cols, s.in, [&](auto i, auto k) { return std::as_const(x).at(i, k); },
          [&](auto k, auto j) { return std::as_const(weight).at(j, k); },
          [&](auto, auto j) { return static_cast<double>(bias.at(0, j)); });
      expect_rounded(out, pre.values, pre.errors, "pre-activation of " + what);
      Doubles expected, errors;
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t c = 0; c < s.out; ++c) {
          const double value = std::as_const(out).at(r, c), up = gated ? std::as_const(out).at(r, s.out + c) : 0.0;
          expected.push_back(reference_activation(activation, value, up));
          errors.push_back(1e-6 * (std::abs(expected.back()) + std::min(1.0, std::abs(value))));
        }
      }
      expect_rounded(activated, expected, errors, what);
      ops_->activate(stream_, activation, out.tensor(), again.tensor());
      EXPECT_TRUE(again.same_bits(activated)) << "activate alone, " << what;
    }
  }
}

TEST_P(Bf16Linear, backward_input_is_d_out_times_weight_overwritten_or_added) {
  for (const LayerSizes& s : kSizes) {
    Bf16Matrix d_out = Bf16Matrix::random(s.rows, s.out, 7, 1.0, 0.0, 1);
    Bf16Matrix weight = Bf16Matrix::random(s.out, s.in, 8, 1.0, 0.0, 2);
    const Bf16Matrix before = Bf16Matrix::random(s.rows, s.in, 9, 1.0, 0.0, 3);
    for (const bool accumulate : {false, true}) {
      Bf16Matrix d_x = before;
      ops_->backward_input(stream_, d_out.tensor(), weight.tensor(), d_x.tensor(), accumulate);
      const Expected expected = product(
          s.rows, s.in, s.out, [&](auto i, auto k) { return std::as_const(d_out).at(i, k); },
          [&](auto k, auto j) { return std::as_const(weight).at(k, j); },
          [&](auto i, auto j) { return accumulate ? before.at(i, j) : 0.0; });
      expect_rounded(d_x, expected.values, expected.errors, "d_x, " + describe(s));
    }
  }
}

TEST_P(Bf16Linear, backward_input_activation_multiplies_by_the_derivative_before_rounding_also_in_place) {
  for (const Activation activation :
       {Activation::none, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2, Activation::swiglu}) {
    const bool gated = activation == Activation::swiglu;
    for (const LayerSizes& s : kSizes) {
      const std::int64_t pre_cols = gated ? 2 * s.in : s.in;
      Bf16Matrix d_out = Bf16Matrix::random(s.rows, s.out, 10, 1.0, 0.0, 1),
                 weight = Bf16Matrix::random(s.out, s.in, 11);
      Bf16Matrix pre = Bf16Matrix::random(s.rows, pre_cols, 12, 1.0, 0.0, 5), d_pre(s.rows, pre_cols, 2);
      Expected d = product(
          s.rows, s.in, s.out, [&](auto i, auto k) { return std::as_const(d_out).at(i, k); },
          [&](auto k, auto j) { return std::as_const(weight).at(k, j); }, [](auto, auto) { return 0.0; });
      Doubles expected(static_cast<std::size_t>(s.rows * pre_cols)), errors(expected.size());
      const auto put = [&](std::int64_t at, std::int64_t from, double factor) {
        const auto i = static_cast<std::size_t>(at);
        expected[i] = d.value(from) * factor;
        errors[i] = d.error(from) * std::abs(factor) + 2e-6 * std::abs(d.value(from)) * (1.0 + std::abs(factor));
      };
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t c = 0; c < s.in; ++c) {
          const double x = std::as_const(pre).at(r, c), up = gated ? std::as_const(pre).at(r, s.in + c) : 0.0;
          put(r * pre_cols + c, r * s.in + c, reference_derivative(activation, x, up));
          if (gated) put(r * pre_cols + s.in + c, r * s.in + c, reference_activation(activation, x, 1.0));
        }
      }
      const std::string what = std::string(name_of(activation)) + ", " + describe(s);
      ops_->backward_input_activation(stream_, d_out.tensor(), weight.tensor(), activation, pre.tensor(),
                                      d_pre.tensor(), {});
      expect_rounded(d_pre, expected, errors, "d_pre of " + what);
      ops_->backward_input_activation(stream_, d_out.tensor(), weight.tensor(), activation, pre.tensor(), pre.tensor(),
                                      {});
      EXPECT_TRUE(pre.same_bits(d_pre)) << "in place, " << what;
    }
  }
}

TEST_P(Bf16Linear, backward_weight_sums_over_rows_in_fp32_overwritten_or_added) {
  for (const LayerSizes& s : kSizes) {
    Bf16Matrix d_out = Bf16Matrix::random(s.rows, s.out, 13, 1.0, 0.5, 2),
               x = Bf16Matrix::random(s.rows, s.in, 14, 1.0, 0.0, 1);
    const Matrix weight_before = Matrix::random(s.out, s.in, 15, 1.0, 0.0, 3),
                 bias_before = Matrix::random(1, s.out, 16);
    for (const bool accumulate : {false, true}) {
      Matrix weight_grad = weight_before, bias_grad = bias_before, without_bias = weight_before;
      ops_->backward_weight(stream_, d_out.tensor(), x.tensor(), weight_grad.tensor(), bias_grad.tensor(), accumulate);
      ops_->backward_weight(stream_, d_out.tensor(), x.tensor(), without_bias.tensor(), {}, accumulate);
      const auto left = [&](auto o, auto r) { return std::as_const(d_out).at(r, o); };
      const Expected expected = product(
          s.out, s.in, s.rows, left, [&](auto r, auto i) { return std::as_const(x).at(r, i); },
          [&](auto o, auto i) { return accumulate ? static_cast<double>(weight_before.at(o, i)) : 0.0; });
      const Expected expected_bias = product(
          s.out, 1, s.rows, left, [](auto, auto) { return 1.0; },
          [&](auto o, auto) { return accumulate ? static_cast<double>(bias_before.at(0, o)) : 0.0; });
      expect_within(weight_grad, expected, "weight gradient, " + describe(s));
      expect_within(bias_grad, expected_bias, "bias gradient, " + describe(s));
      EXPECT_TRUE(weight_grad.same_bits(without_bias)) << describe(s);
    }
  }
}

TEST_P(Bf16Linear, the_bits_do_not_depend_on_the_number_of_threads) {
  const std::int64_t rows = 100, in = 290, out = 86;
  Bf16Matrix x = Bf16Matrix::random(rows, in, 23), weight = Bf16Matrix::random(out, in, 24),
             d_out = Bf16Matrix::random(rows, out, 26);
  Bf16Matrix pre = Bf16Matrix::random(rows, in, 27);
  Matrix bias = Matrix::random(1, out, 25);
  const auto run = [&] {
    Bf16Matrix result(rows, out), activated(rows, out / 2), d_pre(rows, in);
    Matrix weight_grad(out, in), bias_grad(1, out);
    ops_->forward(stream_, x.tensor(), weight.tensor(), bias.tensor(), Activation::swiglu, result.tensor(),
                  activated.tensor());
    ops_->backward_input_activation(stream_, d_out.tensor(), weight.tensor(), Activation::gelu_tanh, pre.tensor(),
                                    d_pre.tensor(), {});
    ops_->backward_weight(stream_, d_out.tensor(), x.tensor(), weight_grad.tensor(), bias_grad.tensor(), false);
    return std::tuple(result, activated, d_pre, weight_grad, bias_grad);
  };
  expect_same_bits_on_threads({2, 5}, run);
}

INSTANTIATE_TEST_SUITE_P(Units, Bf16Linear, kAllUnits, name_of_unit);

}  // namespace
}  // namespace polaron::test

// LinearOps against plain loops in double precision, with both engines: products of odd sizes on views of larger
// matrices, every activation as epilogue, accumulation, determinism.
#include "cpu/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/families.h"
#include "ops/activation_reference.h"
#include "ops/linear_sizes.h"
#include "ops/reference.h"
#include "ops/same_bits.h"

namespace polaron::test {
namespace {

using cpu::GemmEngine;

constexpr double kForward = 5e-6, kBackward = 1e-5;

// Around the tile's 14 x 32 (gemm_test has the larger ones).
const LayerSizes kSizes[] = {{1, 1, 1},    {1, 33, 3},   {3, 5, 1},    {5, 3, 33},   {7, 771, 5},
                             {33, 5, 771}, {64, 64, 64}, {28, 32, 64}, {129, 33, 65}};

// [rows, cols] = a b^T for a [rows, k], b [cols, k].
Doubles product_nt(const Matrix& a, const Matrix& b) {
  Doubles result;
  for (std::int64_t r = 0; r < a.rows(); ++r) {
    for (std::int64_t c = 0; c < b.rows(); ++c) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < a.cols(); ++k)
        sum += static_cast<double>(a.at(r, k)) * static_cast<double>(b.at(c, k));
      result.push_back(sum);
    }
  }
  return result;
}
// a b for a [rows, k], b [k, cols].
Doubles product_nn(const Matrix& a, const Matrix& b) {
  Doubles result(a.rows() * b.cols(), 0.0);
  for (std::int64_t r = 0; r < a.rows(); ++r) {
    for (std::int64_t k = 0; k < a.cols(); ++k) {
      for (std::int64_t c = 0; c < b.cols(); ++c) {
        result[r * b.cols() + c] += static_cast<double>(a.at(r, k)) * static_cast<double>(b.at(k, c));
      }
    }
  }
  return result;
}

class LinearEngines : public testing::TestWithParam<GemmEngine> {
 protected:
  std::unique_ptr<LinearOps> ops_ = cpu::make_linear_ops(GetParam());
  HostStream stream_;
};

TEST_P(LinearEngines, forward_is_x_times_transposed_weight_plus_bias) {
  for (const LayerSizes& s : kSizes) {
    Matrix x = Matrix::random(s.rows, s.in, 1, 1.0, 0.0, 3), weight = Matrix::random(s.out, s.in, 2, 1.0, 0.0, 2);
    Matrix bias = Matrix::random(1, s.out, 3);
    for (const bool biased : {false, true}) {
      Matrix out(s.rows, s.out, 7);
      ops_->forward(stream_, x.tensor(), weight.tensor(), biased ? bias.tensor() : Tensor{}, Activation::none,
                    out.tensor(), {});
      Doubles expected = product_nt(x, weight);
      if (biased) {
        for (std::int64_t i = 0; i < s.rows * s.out; ++i) expected[i] += static_cast<double>(bias.at(0, i % s.out));
      }
      expect_close(out, expected, kForward, "forward, " + describe(s));
    }
  }
}

TEST_P(LinearEngines, forward_applies_every_activation_and_keeps_the_pre_activation) {
  for (const Activation activation :
       {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2, Activation::swiglu}) {
    const bool gated = activation == Activation::swiglu;
    for (const LayerSizes& s : kSizes) {
      const std::int64_t out_cols = gated ? 2 * s.out : s.out;
      // Small enough values that the pre-activations are of order 1.
      Matrix x = Matrix::random(s.rows, s.in, 4, 1.0 / std::sqrt(static_cast<double>(s.in)), 0.0, 1);
      Matrix weight = Matrix::random(out_cols, s.in, 5, 1.0, 0.0, 4), bias = Matrix::random(1, out_cols, 6);
      Matrix out(s.rows, out_cols, 3), activated(s.rows, s.out, 2);
      ops_->forward(stream_, x.tensor(), weight.tensor(), bias.tensor(), activation, out.tensor(), activated.tensor());
      Doubles pre = product_nt(x, weight), expected;
      for (std::int64_t i = 0; i < s.rows * out_cols; ++i) pre[i] += static_cast<double>(bias.at(0, i % out_cols));
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t c = 0; c < s.out; ++c) {
          const double* row = pre.data() + r * out_cols;
          expected.push_back(reference_activation(activation, row[c], gated ? row[s.out + c] : 0.0));
        }
      }
      const std::string what = std::string(name_of(activation)) + ", " + describe(s);
      expect_close(out, pre, kForward, "pre-activation of " + what);
      expect_close(activated, expected, kForward, what);
      Matrix again(s.rows, s.out, 5);
      ops_->activate(stream_, activation, out.tensor(), again.tensor());
      expect_close(again, expected, kForward, "activate alone, " + what);
    }
  }
}

TEST_P(LinearEngines, backward_input_is_d_out_times_weight_overwritten_or_added) {
  for (const LayerSizes& s : kSizes) {
    Matrix d_out = Matrix::random(s.rows, s.out, 7, 1.0, 0.0, 1), weight = Matrix::random(s.out, s.in, 8, 1.0, 0.0, 2);
    const Matrix before = Matrix::random(s.rows, s.in, 9, 1.0, 0.0, 3);
    for (const bool accumulate : {false, true}) {
      Matrix d_x = before;
      ops_->backward_input(stream_, d_out.tensor(), weight.tensor(), d_x.tensor(), accumulate);
      Doubles expected = product_nn(d_out, weight);
      if (accumulate) {
        const Doubles start = before.values();
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += start[i];
      }
      expect_close(d_x, expected, kBackward, "d_x, " + describe(s));
    }
  }
}

TEST_P(LinearEngines, backward_input_activation_multiplies_by_the_derivative_also_in_place) {
  for (const Activation activation :
       {Activation::none, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2, Activation::swiglu}) {
    const bool gated = activation == Activation::swiglu;
    std::vector<LayerSizes> sizes(std::begin(kSizes), std::end(kSizes));
    sizes.push_back({40, 17, 2100});  // deep enough for several passes
    for (const LayerSizes& s : sizes) {
      const std::int64_t pre_cols = gated ? 2 * s.in : s.in;
      Matrix d_out = Matrix::random(s.rows, s.out, 10, 1.0, 0.0, 1), weight = Matrix::random(s.out, s.in, 11);
      Matrix pre = Matrix::random(s.rows, pre_cols, 12, 1.0, 0.0, 5);
      const Doubles d_activated = product_nn(d_out, weight);
      Doubles expected(s.rows * pre_cols);
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t c = 0; c < s.in; ++c) {
          const double d = d_activated[r * s.in + c], x = static_cast<double>(pre.at(r, c));
          const double up = gated ? static_cast<double>(pre.at(r, s.in + c)) : 0.0;
          expected[r * pre_cols + c] = d * reference_derivative(activation, x, up);
          if (gated) expected[r * pre_cols + s.in + c] = d * reference_activation(activation, x, 1.0);
        }
      }
      Matrix d_pre(s.rows, pre_cols, 2), scratch(s.rows, s.in);
      const std::string what = std::string(name_of(activation)) + ", " + describe(s);
      ops_->backward_input_activation(stream_, d_out.tensor(), weight.tensor(), activation, pre.tensor(),
                                      d_pre.tensor(), scratch.tensor());
      expect_close(d_pre, expected, kBackward, "d_pre of " + what);
      ops_->backward_input_activation(stream_, d_out.tensor(), weight.tensor(), activation, pre.tensor(), pre.tensor(),
                                      scratch.tensor());
      expect_close(pre, expected, kBackward, "d_pre in place of " + what);
    }
  }
}

TEST_P(LinearEngines, backward_weight_sums_over_rows_overwritten_or_added) {
  for (const LayerSizes& s : kSizes) {
    Matrix d_out = Matrix::random(s.rows, s.out, 13, 1.0, 0.5, 2), x = Matrix::random(s.rows, s.in, 14, 1.0, 0.0, 1);
    const Matrix weight_before = Matrix::random(s.out, s.in, 15, 1.0, 0.0, 3),
                 bias_before = Matrix::random(1, s.out, 16);
    for (const bool accumulate : {false, true}) {
      Matrix weight_grad = weight_before, bias_grad = bias_before, without_bias = weight_before;
      ops_->backward_weight(stream_, d_out.tensor(), x.tensor(), weight_grad.tensor(), bias_grad.tensor(), accumulate);
      ops_->backward_weight(stream_, d_out.tensor(), x.tensor(), without_bias.tensor(), {}, accumulate);
      Doubles expected = accumulate ? weight_before.values() : Doubles(s.out * s.in, 0.0);
      Doubles expected_bias = accumulate ? bias_before.values() : Doubles(s.out, 0.0);
      for (std::int64_t r = 0; r < s.rows; ++r) {
        for (std::int64_t o = 0; o < s.out; ++o) {
          const double d = static_cast<double>(d_out.at(r, o));
          expected_bias[o] += d;
          for (std::int64_t i = 0; i < s.in; ++i) expected[o * s.in + i] += d * static_cast<double>(x.at(r, i));
        }
      }
      expect_close(weight_grad, expected, kBackward, "weight gradient, " + describe(s));
      expect_close(bias_grad, expected_bias, kBackward, "bias gradient, " + describe(s));
      EXPECT_TRUE(weight_grad.same_bits(without_bias)) << describe(s);
    }
  }
}

TEST_P(LinearEngines, the_same_call_gives_the_same_bits) {
  const std::int64_t rows = 130, in = 97, out = 210;
  Matrix x = Matrix::random(rows, in, 17), weight = Matrix::random(out, in, 18), bias = Matrix::random(1, out, 19);
  Matrix d_out = Matrix::random(rows, out, 20);
  const auto run = [&] {
    Matrix pre(rows, out), activated(rows, out / 2), weight_grad(out, in), bias_grad(1, out);
    ops_->forward(stream_, x.tensor(), weight.tensor(), bias.tensor(), Activation::swiglu, pre.tensor(),
                  activated.tensor());
    ops_->backward_weight(stream_, d_out.tensor(), x.tensor(), weight_grad.tensor(), bias_grad.tensor(), true);
    return std::tuple(pre, activated, weight_grad, bias_grad);
  };
  const auto [pre, activated, weight_grad, bias_grad] = run();
  const auto [pre2, activated2, weight_grad2, bias_grad2] = run();
  EXPECT_TRUE(pre.same_bits(pre2));
  EXPECT_TRUE(activated.same_bits(activated2));
  EXPECT_TRUE(weight_grad.same_bits(weight_grad2));
  EXPECT_TRUE(bias_grad.same_bits(bias_grad2));
}

TEST_P(LinearEngines, operands_of_two_types_are_refused) {
  std::uint16_t memory[4] = {};
  const Tensor bf16(memory, DType::bf16, 2, 2);
  Matrix m(2, 2);
  EXPECT_THROW(ops_->forward(stream_, bf16, m.tensor(), {}, Activation::none, m.tensor(), {}), std::logic_error);
  EXPECT_THROW(ops_->forward(stream_, m.tensor(), bf16, {}, Activation::none, m.tensor(), {}), std::logic_error);
  EXPECT_THROW(ops_->forward(stream_, bf16, bf16, {}, Activation::none, m.tensor(), {}), std::logic_error);
  EXPECT_THROW(ops_->backward_input(stream_, bf16, m.tensor(), m.tensor(), false), std::logic_error);
  EXPECT_THROW(ops_->backward_weight(stream_, m.tensor(), bf16, m.tensor(), {}, false), std::logic_error);
  EXPECT_THROW(ops_->backward_weight(stream_, bf16, bf16, bf16, {}, false), std::logic_error);
}

TEST_P(LinearEngines, nan_in_one_row_stays_in_that_row) {
  const std::int64_t rows = 20, in = 40, out = 50;
  Matrix x = Matrix::random(rows, in, 21), weight = Matrix::random(out, in, 22), pre(rows, out), activated(rows, out);
  x.at(6, 3) = std::numeric_limits<float>::quiet_NaN();
  ops_->forward(stream_, x.tensor(), weight.tensor(), {}, Activation::gelu_tanh, pre.tensor(), activated.tensor());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < out; ++c) {
      ASSERT_EQ(std::isnan(pre.at(r, c)), r == 6) << r << ", " << c;
      ASSERT_EQ(std::isnan(activated.at(r, c)), r == 6) << r << ", " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, LinearEngines, testing::Values(GemmEngine::tiles, GemmEngine::blas),
                         [](const auto& engine) { return engine.param == GemmEngine::tiles ? "tiles" : "blas"; });

TEST(Linear, tiles_give_the_same_bits_for_any_number_of_threads) {
  const std::unique_ptr<LinearOps> ops = cpu::make_linear_ops(GemmEngine::tiles);
  HostStream stream;
  const std::int64_t rows = 150, in = 2100, out = 86;
  Matrix x = Matrix::random(rows, in, 23), weight = Matrix::random(out, in, 24), bias = Matrix::random(1, out, 25);
  Matrix d_out = Matrix::random(rows, out, 26), pre = Matrix::random(rows, in, 27);
  const auto run = [&] {
    Matrix result(rows, out), activated(rows, out), d_pre(rows, in), weight_grad(out, in), bias_grad(1, out);
    ops->forward(stream, x.tensor(), weight.tensor(), bias.tensor(), Activation::gelu_erf, result.tensor(),
                 activated.tensor());
    ops->backward_input_activation(stream, d_out.tensor(), weight.tensor(), Activation::gelu_tanh, pre.tensor(),
                                   d_pre.tensor(), {});
    ops->backward_weight(stream, d_out.tensor(), x.tensor(), weight_grad.tensor(), bias_grad.tensor(), false);
    return std::tuple(result, activated, d_pre, weight_grad, bias_grad);
  };
  expect_same_bits_on_threads({2, 3, 5, 16}, run);
}

}  // namespace
}  // namespace polaron::test

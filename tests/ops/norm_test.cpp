#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <ostream>
#include <stdexcept>

#include "cpu/families.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

constexpr float kEps = 1e-5F;

struct Case {
  NormKind kind;
  std::int64_t rows, width;
  bool weight, bias;
  DType type;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << (c.kind == NormKind::layernorm ? "layernorm " : "rmsnorm ") << c.rows << " x " << c.width
               << (c.weight ? " weight" : "") << (c.bias ? " bias" : "") << ' ' << name_of(c.type);
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const DType type : kActivationTypes) {
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
      const bool layernorm = kind == NormKind::layernorm;
      for (const std::int64_t width : {1, 5, 7, 33, 64, 771}) all.push_back({kind, 3, width, true, layernorm, type});
      for (const std::int64_t rows : {1, 31, 32, 33, 100}) all.push_back({kind, rows, 48, true, layernorm, type});
      all.push_back({kind, 70, 300, true, true, type});
      all.push_back({kind, 5, 40, false, false, type});
      all.push_back({kind, 5, 40, true, false, type});
      all.push_back({kind, 5, 40, false, true, type});
    }
  }
  return all;
}

struct Forward {
  Doubles normed, mean, rstd;
};

// weight and bias: empty where absent.
Forward forward_reference(NormKind kind, const Doubles& x, const Doubles& weight, const Doubles& bias,
                          std::int64_t rows) {
  const std::int64_t width = static_cast<std::int64_t>(x.size()) / rows;
  Forward result;
  for (std::int64_t n = 0; n < rows; ++n) {
    double mean = 0.0, variance = 0.0;
    for (std::int64_t c = 0; c < width; ++c) mean += x[n * width + c] / static_cast<double>(width);
    if (kind == NormKind::rmsnorm) mean = 0.0;
    for (std::int64_t c = 0; c < width; ++c) {
      variance += (x[n * width + c] - mean) * (x[n * width + c] - mean) / static_cast<double>(width);
    }
    const double rstd = 1.0 / std::sqrt(variance + static_cast<double>(kEps));
    for (std::int64_t c = 0; c < width; ++c) {
      result.normed.push_back((x[n * width + c] - mean) * rstd * (weight.empty() ? 1.0 : weight[c]) +
                              (bias.empty() ? 0.0 : bias[c]));
    }
    result.mean.push_back(mean);
    result.rstd.push_back(rstd);
  }
  return result;
}

struct Backward {
  Doubles d_x, d_weight, d_bias;
};

// The derivatives written out: for each row, d normed[j] / d x[c] = weight[j] * rstd * (delta(j, c) - [1/C for
// LayerNorm] - xhat[j] xhat[c] / C).
Backward backward_reference(NormKind kind, const Doubles& d, const Doubles& x, const Doubles& weight,
                            std::int64_t rows) {
  const std::int64_t width = static_cast<std::int64_t>(x.size()) / rows;
  const Forward forward = forward_reference(kind, x, {}, {}, rows);
  const auto size = static_cast<double>(width);
  Backward result{Doubles(x.size()), Doubles(width), Doubles(width)};
  for (std::int64_t n = 0; n < rows; ++n) {
    const double* const xhat = forward.normed.data() + n * width;
    for (std::int64_t j = 0; j < width; ++j) {
      const double g = d[n * width + j] * (weight.empty() ? 1.0 : weight[j]);
      for (std::int64_t c = 0; c < width; ++c) {
        const double centre = kind == NormKind::layernorm ? 1.0 / size : 0.0;
        result.d_x[n * width + c] += g * forward.rstd[n] * ((j == c ? 1.0 : 0.0) - centre - xhat[j] * xhat[c] / size);
      }
      result.d_weight[j] += d[n * width + j] * xhat[j];
      result.d_bias[j] += d[n * width + j];
    }
  }
  return result;
}

Doubles sum_of(const Doubles& a, const Doubles& b) {
  Doubles sum(a);
  for (std::size_t i = 0; i < a.size(); ++i) sum[i] += b[i];
  return sum;
}

class Norm : public testing::TestWithParam<Case> {
 protected:
  Norm() {
    Matrix normed = activations();
    ops->forward(stream, c.kind, kEps, x.tensor(), {}, scale(), shift(), {}, normed.tensor(), means(), rstd.tensor());
  }

  Matrix activations(std::int64_t padding = 0) const { return {c.rows, c.width, padding, c.type}; }  // zero
  Tensor scale() { return c.weight ? weight.tensor() : Tensor(); }
  Tensor shift() { return c.bias ? bias.tensor() : Tensor(); }
  Tensor means() { return c.kind == NormKind::layernorm ? mean.tensor() : Tensor(); }
  // One column: x - mean, or its gradient, is zero but for rounding, which rstd = 1/sqrt(eps) magnifies. In bf16 the
  // gradient's part of that is larger than fp32's allowance: the rounding of d_normed * weight to fp32, half a unit in
  // the last place of each.
  double rounding() const {
    if (c.width > 1) return 1e-7;
    if (c.type == DType::f32) return 1e-5;
    double magnified = 0.0;
    for (const double d : d_normed.values()) {
      magnified =
          std::max(magnified, 0x1p-24 * std::abs(d * weight.values()[0]) / std::sqrt(static_cast<double>(kEps)));
    }
    return 1e-7 + magnified;
  }
  Doubles scales() const { return c.weight ? weight.values() : Doubles(); }
  Doubles shifts() const { return c.bias ? bias.values() : Doubles(); }

  Case c = GetParam();
  Matrix x = Matrix::random(c.rows, c.width, 1, 2.0, 0.5, 3, c.type);
  Matrix weight = Matrix::random(1, c.width, 2, 0.5, 1.0);
  Matrix bias = Matrix::random(1, c.width, 3, 0.5);
  Matrix mean = Matrix(c.rows, 1), rstd = Matrix(c.rows, 1);
  Matrix d_normed = Matrix::random(c.rows, c.width, 4, 1.0, 0.0, 2, c.type);
  HostStream stream;
  std::unique_ptr<NormOps> ops = cpu::make_norm_ops();
};

TEST_P(Norm, forward_agrees_with_the_reference) {
  Matrix normed = activations(1);
  ops->forward(stream, c.kind, kEps, x.tensor(), {}, scale(), shift(), {}, normed.tensor(), means(), rstd.tensor());
  const Forward expected = forward_reference(c.kind, x.values(), scales(), shifts(), c.rows);
  expect_close(normed, expected.normed, 1e-6, "normed", rounding());
  expect_close(rstd, expected.rstd, 1e-6, "rstd");
  if (c.kind == NormKind::layernorm) expect_close(mean, expected.mean, 1e-6, "mean");
}

TEST_P(Norm, forward_adds_delta_to_the_residual_first) {
  Matrix delta = Matrix::random(c.rows, c.width, 5, 1.0, 0.0, 1, c.type);
  Matrix residual = activations(), normed = activations();
  ops->forward(stream, c.kind, kEps, x.tensor(), delta.tensor(), scale(), shift(), residual.tensor(), normed.tensor(),
               means(), rstd.tensor());
  expect_close(residual, sum_of(x.values(), delta.values()), 1e-7, "residual_out");
  const Forward expected = forward_reference(c.kind, residual.values(), scales(), shifts(), c.rows);
  expect_close(normed, expected.normed, 1e-6, "normed", rounding());
  expect_close(rstd, expected.rstd, 1e-6, "rstd");

  Matrix in_place = x, normed_again = activations();
  ops->forward(stream, c.kind, kEps, in_place.tensor(), delta.tensor(), scale(), shift(), in_place.tensor(),
               normed_again.tensor(), means(), rstd.tensor());
  EXPECT_TRUE(in_place.same_bits(residual));
  EXPECT_TRUE(normed_again.same_bits(normed));
}

TEST_P(Norm, forward_without_delta_hands_the_residual_on) {
  Matrix elsewhere = activations(2), same = x, normed = activations(), normed_again = activations();
  ops->forward(stream, c.kind, kEps, x.tensor(), {}, scale(), shift(), elsewhere.tensor(), normed.tensor(), means(),
               rstd.tensor());
  EXPECT_TRUE(elsewhere.same_bits(x));
  ops->forward(stream, c.kind, kEps, same.tensor(), {}, scale(), shift(), same.tensor(), normed_again.tensor(), means(),
               rstd.tensor());
  EXPECT_TRUE(same.same_bits(x));
  EXPECT_TRUE(normed_again.same_bits(normed));
}

TEST_P(Norm, backward_agrees_with_the_written_out_derivatives_and_adds_them) {
  Matrix d_residual = Matrix::random(c.rows, c.width, 6, 1.0, 0.0, 4, c.type);
  Matrix weight_grad = Matrix::random(1, c.width, 7), bias_grad = Matrix::random(1, c.width, 8);
  const Backward expected = backward_reference(c.kind, d_normed.values(), x.values(), scales(), c.rows);
  const Doubles expected_x = sum_of(d_residual.values(), expected.d_x);
  const Doubles expected_weight = sum_of(weight_grad.values(), expected.d_weight);
  const Doubles expected_bias = sum_of(bias_grad.values(), expected.d_bias);
  ops->backward(stream, c.kind, d_normed.tensor(), x.tensor(), scale(), means(), rstd.tensor(), d_residual.tensor(),
                c.weight ? weight_grad.tensor() : Tensor(), c.bias ? bias_grad.tensor() : Tensor());
  expect_close(d_residual, expected_x, 2e-6, "d_residual", rounding());
  if (c.weight) expect_close(weight_grad, expected_weight, 2e-6, "weight_grad");
  if (c.bias) expect_close(bias_grad, expected_bias, 2e-6, "bias_grad");
}

TEST_P(Norm, backward_is_the_derivative_of_forward) {
  Matrix d_residual = activations(), weight_grad(1, c.width), bias_grad(1, c.width);
  ops->backward(stream, c.kind, d_normed.tensor(), x.tensor(), scale(), means(), rstd.tensor(), d_residual.tensor(),
                c.weight ? weight_grad.tensor() : Tensor(), c.bias ? bias_grad.tensor() : Tensor());
  const auto loss = [&](const Doubles& at_x, const Doubles& at_weight, const Doubles& at_bias) {
    return dot(d_normed.values(), forward_reference(c.kind, at_x, at_weight, at_bias, c.rows).normed);
  };
  expect_derivative(
      d_residual, [&](const Doubles& v) { return loss(v, scales(), shifts()); }, x.values(), 1e-5, "d_residual",
      rounding());
  if (c.weight) {
    expect_derivative(
        weight_grad, [&](const Doubles& v) { return loss(x.values(), v, shifts()); }, weight.values(), 1e-5,
        "weight_grad", 1e-7);
  }
  if (c.bias) {
    expect_derivative(
        bias_grad, [&](const Doubles& v) { return loss(x.values(), scales(), v); }, bias.values(), 1e-5, "bias_grad",
        1e-7);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Norm, testing::ValuesIn(cases()));

struct Results {
  Matrix normed, mean, rstd, d_residual, weight_grad, bias_grad;
};

Results forward_and_backward(DType type, NormKind kind, std::int64_t rows, std::int64_t width, int threads) {
  const Threads scope(threads);
  const auto random = [&](std::uint64_t seed) { return Matrix::random(rows, width, seed, 3.0, 0.0, 0, type); };
  Matrix x = random(1), d = random(2), weight = Matrix::random(1, width, 3), bias = Matrix::random(1, width, 4);
  Results run{
      Matrix(rows, width, 0, type), Matrix(rows, 1), Matrix(rows, 1), random(5), Matrix(1, width), Matrix(1, width)};
  HostStream stream;
  const auto ops = cpu::make_norm_ops();
  ops->forward(stream, kind, kEps, x.tensor(), {}, weight.tensor(), bias.tensor(), {}, run.normed.tensor(),
               run.mean.tensor(), run.rstd.tensor());
  ops->backward(stream, kind, d.tensor(), x.tensor(), weight.tensor(), run.mean.tensor(), run.rstd.tensor(),
                run.d_residual.tensor(), run.weight_grad.tensor(), run.bias_grad.tensor());
  return run;
}

TEST(NormOps, gives_the_same_bits_for_any_number_of_threads) {
  for (const DType type : kActivationTypes) {
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
      const Results one = forward_and_backward(type, kind, 333, 197, 1);
      for (const int threads : {1, 2, 3}) {
        const Results again = forward_and_backward(type, kind, 333, 197, threads);
        EXPECT_TRUE(again.normed.same_bits(one.normed)) << threads;
        EXPECT_TRUE(again.mean.same_bits(one.mean)) << threads;
        EXPECT_TRUE(again.rstd.same_bits(one.rstd)) << threads;
        EXPECT_TRUE(again.d_residual.same_bits(one.d_residual)) << threads;
        EXPECT_TRUE(again.weight_grad.same_bits(one.weight_grad)) << threads;
        EXPECT_TRUE(again.bias_grad.same_bits(one.bias_grad)) << threads;
      }
    }
  }
}

// E[x^2] - E[x]^2 in fp32 would have no correct digit here.
TEST(NormOps, a_mean_far_from_zero_does_not_spoil_the_variance) {
  Matrix x = Matrix::random(4, 771, 1, 1.0, 3000.0), normed(4, 771), mean(4, 1), rstd(4, 1);
  HostStream stream;
  cpu::make_norm_ops()->forward(stream, NormKind::layernorm, kEps, x.tensor(), {}, {}, {}, {}, normed.tensor(),
                                mean.tensor(), rstd.tensor());
  const Forward expected = forward_reference(NormKind::layernorm, x.values(), {}, {}, 4);
  expect_close(rstd, expected.rstd, 1e-6, "rstd");
  expect_close(mean, expected.mean, 1e-7, "mean");
  expect_close(normed, expected.normed, 0.0, "normed", 1.3e-4);  // half a unit in the last place of an fp32 mean
}

TEST(NormOps, backward_of_one_object_serves_many_shapes) {
  const auto ops = cpu::make_norm_ops();
  HostStream stream;
  for (const std::int64_t rows : {200, 3, 100}) {
    const std::int64_t width = 10 + rows % 7;
    Matrix x = Matrix::random(rows, width, 1), d = Matrix::random(rows, width, 2), d_x(rows, width);
    Matrix rstd(rows, 1), normed(rows, width), weight_grad(1, width), weight = Matrix::filled(1, width, 1.0F);
    ops->forward(stream, NormKind::rmsnorm, kEps, x.tensor(), {}, weight.tensor(), {}, {}, normed.tensor(), {},
                 rstd.tensor());
    ops->backward(stream, NormKind::rmsnorm, d.tensor(), x.tensor(), weight.tensor(), {}, rstd.tensor(), d_x.tensor(),
                  weight_grad.tensor(), {});
    const Backward expected = backward_reference(NormKind::rmsnorm, d.values(), x.values(), weight.values(), rows);
    expect_close(weight_grad, expected.d_weight, 2e-6, "weight_grad");
  }
}

TEST(NormOps, a_nan_spoils_its_own_row_and_no_other) {
  for (const DType type : kActivationTypes) {
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
      Matrix x = Matrix::random(3, 40, 1, 1.0, 0.0, 0, type), normed(3, 40, 0, type), mean(3, 1), rstd(3, 1);
      x.at(1, 39) = NAN;
      HostStream stream;
      cpu::make_norm_ops()->forward(stream, kind, kEps, x.tensor(), {}, {}, {}, {}, normed.tensor(), mean.tensor(),
                                    rstd.tensor());
      for (std::int64_t c = 0; c < 40; ++c) {
        EXPECT_TRUE(std::isnan(normed.at(1, c)));
        EXPECT_TRUE(std::isfinite(normed.at(0, c)) && std::isfinite(normed.at(2, c)));
      }
    }
  }
}

TEST(NormOps, missing_pieces_are_refused) {
  Matrix x(2, 4), normed(2, 4), rstd(2, 1);
  HostStream stream;
  const auto ops = cpu::make_norm_ops();
  EXPECT_THROW(ops->forward(stream, NormKind::rmsnorm, kEps, x.tensor(), x.tensor(), {}, {}, {}, normed.tensor(), {},
                            rstd.tensor()),
               std::logic_error);
  EXPECT_THROW(ops->backward(stream, NormKind::layernorm, normed.tensor(), x.tensor(), {}, {}, rstd.tensor(),
                             x.tensor(), {}, {}),
               std::logic_error);
  Tensor wrong = normed.tensor();
  for (const DType type : {DType::i32, DType::bf16}) {  // unknown, and another one than x has
    wrong.dtype = type;
    EXPECT_THROW(ops->forward(stream, NormKind::rmsnorm, kEps, x.tensor(), {}, {}, {}, {}, wrong, {}, rstd.tensor()),
                 std::logic_error);
  }
}

}  // namespace
}  // namespace polaron::test

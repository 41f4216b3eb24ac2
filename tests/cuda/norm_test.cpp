#include <cmath>
#include <stdexcept>

#include "family.h"
#include "support/errors.h"

namespace polaron::test {
namespace {

constexpr float kEps = 1e-5F;
constexpr NormKind kKinds[] = {NormKind::layernorm, NormKind::rmsnorm};

struct Shape {
  std::int64_t rows, width, padding;
};
// Whole packs, odd widths, rows that are not aligned, several warps a row, several rows a block, more rows than blocks
// of backward.
const Shape kShapes[] = {{3, 1, 0},     {4, 5, 3},    {5, 33, 1},   {3, 64, 0},  {7, 96, 8},
                         {2, 771, 2},   {9, 776, 8},  {3, 1536, 0}, {2, 260, 0}, {1100, 8, 0},
                         {1, 2048, 16}, {33, 40, 24}, {2, 1101, 0}, {1, 8191, 0}};

struct Case {
  NormKind kind;
  Shape shape;
  DType type;
  Matrix x, delta, d_normed, d_residual, weight, bias;

  Case(NormKind kind_, const Shape& s, DType t)
      : kind(kind_),
        shape(s),
        type(t),
        x(rounded_to(t, Matrix::random(s.rows, s.width, 1, 2.0, 0.5))),
        delta(rounded_to(t, Matrix::random(s.rows, s.width, 2))),
        d_normed(rounded_to(t, Matrix::random(s.rows, s.width, 3))),
        d_residual(rounded_to(t, Matrix::random(s.rows, s.width, 4))),
        weight(Matrix::random(1, s.width, 5, 0.5, 1.0)),
        bias(Matrix::random(1, s.width, 6, 0.5)) {}
  // One column: x - mean is zero but for rounding, which rstd = 1/sqrt(eps) magnifies.
  double rounding() const { return shape.width == 1 ? 1e-5 : 2e-7; }
};

struct Reference {
  Doubles normed, mean, rstd, xhat;
  Reference(const Case& c, const Doubles& x) {
    const std::int64_t width = c.shape.width;
    for (std::int64_t n = 0; n < c.shape.rows; ++n) {
      double m = 0.0, variance = 0.0;
      for (std::int64_t i = 0; i < width; ++i) m += x[n * width + i] / static_cast<double>(width);
      if (c.kind == NormKind::rmsnorm) m = 0.0;
      for (std::int64_t i = 0; i < width; ++i) {
        variance += (x[n * width + i] - m) * (x[n * width + i] - m) / static_cast<double>(width);
      }
      mean.push_back(m);
      rstd.push_back(1.0 / std::sqrt(variance + static_cast<double>(kEps)));
      for (std::int64_t i = 0; i < width; ++i) {
        xhat.push_back((x[n * width + i] - m) * rstd.back());
        normed.push_back(xhat.back() * static_cast<double>(c.weight.at(0, i)) + static_cast<double>(c.bias.at(0, i)));
      }
    }
  }
};

class NormFamily : public Family {
 protected:
  template <class Body>
  void for_cases(Body&& body) const {
    for_types([&](DType type) {
      for (const NormKind kind : kKinds) {
        for (const Shape& shape : kShapes) {
          const testing::ScopedTrace trace(__FILE__, __LINE__,
                                           (kind == NormKind::layernorm ? "layernorm " : "rmsnorm ") +
                                               std::to_string(shape.rows) + " x " + std::to_string(shape.width));
          body(Case(kind, shape, type));
        }
      }
    });
  }
};

TEST_P(NormFamily, forward_adds_and_normalises) {
  for_cases([&](const Case& c) {
    const Array x(machine, c.x, c.type, c.shape.padding), delta(machine, c.delta, c.type, c.shape.padding);
    const Matrix zeros(c.shape.rows, c.shape.width), column(c.shape.rows, 1);
    const Array sum(machine, zeros, c.type), normed(machine, zeros, c.type, c.shape.padding);
    const Array weight(machine, c.weight), bias(machine, c.bias), mean(machine, column), rstd(machine, column);
    const Tensor means = c.kind == NormKind::layernorm ? mean.tensor() : Tensor();
    machine.ops().norm().forward(machine.stream(), c.kind, kEps, x, delta, weight, bias, sum, normed, means, rstd);
    Doubles expected_sum = c.x.values();
    const Doubles added = c.delta.values();
    for (std::size_t i = 0; i < expected_sum.size(); ++i) expected_sum[i] += added[i];
    expect_close(sum.values(), expected_sum, tolerance(c.type, 1e-7), "residual_out", c.shape.width);
    const Reference expected(c, sum.values());  // statistics are those of the rounded sum
    expect_close(normed.values(), expected.normed, tolerance(c.type, 1e-6), "normed", c.shape.width, c.rounding());
    expect_close(rstd.values(), expected.rstd, 1e-6, "rstd", 1);
    if (means) expect_close(mean.values(), expected.mean, 1e-6, "mean", 1);
  });
}

TEST_P(NormFamily, forward_in_place_and_without_affine_or_delta) {
  for_types([&](DType type) {
    Case c(NormKind::layernorm, {5, 72, 0}, type);
    c.weight = Matrix::filled(1, 72, 1.0F);
    c.bias = Matrix(1, 72);
    const Array x(machine, c.x, type), copy(machine, Matrix(5, 72), type), normed(machine, Matrix(5, 72), type);
    const Array mean(machine, Matrix(5, 1)), rstd(machine, Matrix(5, 1));
    NormOps& ops = machine.ops().norm();
    ops.forward(machine.stream(), c.kind, kEps, x, {}, {}, {}, x, normed, mean, rstd);
    EXPECT_EQ(x.values(), c.x.values());
    expect_close(normed.values(), Reference(c, c.x.values()).normed, tolerance(type, 1e-6), "normed", 72);
    ops.forward(machine.stream(), c.kind, kEps, x, {}, {}, {}, copy, normed, mean, rstd);
    EXPECT_EQ(copy.values(), c.x.values());
    const Array delta(machine, c.delta, type);
    ops.forward(machine.stream(), c.kind, kEps, copy, delta, {}, {}, copy, normed, mean, rstd);
    expect_close(normed.values(), Reference(c, copy.values()).normed, tolerance(type, 1e-6), "normed", 72);
  });
}

TEST_P(NormFamily, backward_adds_the_derivatives) {
  for_cases([&](const Case& c) {
    const std::int64_t width = c.shape.width, rows = c.shape.rows;
    const Reference forward(c, c.x.values());
    Matrix means(rows, 1), rstds(rows, 1);
    for (std::int64_t n = 0; n < rows; ++n) {
      means.at(n, 0) = static_cast<float>(forward.mean[n]);
      rstds.at(n, 0) = static_cast<float>(forward.rstd[n]);
    }
    const Matrix weight_before = Matrix::random(1, width, 7), bias_before = Matrix::random(1, width, 8);
    const Array d_normed(machine, c.d_normed, c.type, c.shape.padding), x(machine, c.x, c.type, c.shape.padding);
    const Array d_residual(machine, c.d_residual, c.type, c.shape.padding), weight(machine, c.weight);
    const Array mean(machine, means), rstd(machine, rstds);
    const Array weight_grad(machine, weight_before), bias_grad(machine, bias_before);
    const bool biased = c.kind == NormKind::layernorm;
    machine.ops().norm().backward(machine.stream(), c.kind, d_normed, x, weight, biased ? mean.tensor() : Tensor(),
                                  rstd, d_residual, weight_grad, biased ? bias_grad.tensor() : Tensor());

    Doubles d_x = c.d_residual.values(), d_weight = weight_before.values(), d_bias = bias_before.values();
    const Doubles d = c.d_normed.values();
    for (std::int64_t n = 0; n < rows; ++n) {
      double mean_g = 0.0, mean_product = 0.0;
      for (std::int64_t i = 0; i < width; ++i) {
        const double g = d[n * width + i] * static_cast<double>(c.weight.at(0, i));
        mean_g += biased ? g / static_cast<double>(width) : 0.0;
        mean_product += g * forward.xhat[n * width + i] / static_cast<double>(width);
        d_weight[i] += d[n * width + i] * forward.xhat[n * width + i];
        if (biased) d_bias[i] += d[n * width + i];
      }
      for (std::int64_t i = 0; i < width; ++i) {
        const double g = d[n * width + i] * static_cast<double>(c.weight.at(0, i));
        d_x[n * width + i] += forward.rstd[n] * (g - mean_g - forward.xhat[n * width + i] * mean_product);
      }
    }
    // Statistics rounded to fp32 move xhat by a few units in the last place.
    expect_close(d_residual.values(), d_x, tolerance(c.type, 3e-6), "d_residual", width,
                 c.shape.width == 1 ? 1e-4 : 3e-7);
    expect_close(weight_grad.values(), d_weight, 3e-6, "weight_grad", width, c.shape.width == 1 ? 1e-3 : 0.0);
    expect_close(bias_grad.values(), d_bias, 3e-6, "bias_grad", width);
  });
}

TEST_P(NormFamily, a_mean_far_from_zero_does_not_spoil_the_variance) {
  const Matrix x = Matrix::random(4, 771, 1, 1.0, 3000.0);
  const Array in(machine, x), normed(machine, Matrix(4, 771)), mean(machine, Matrix(4, 1)), rstd(machine, Matrix(4, 1));
  machine.ops().norm().forward(machine.stream(), NormKind::layernorm, kEps, in, {}, {}, {}, {}, normed, mean, rstd);
  Case c(NormKind::layernorm, {4, 771, 0}, DType::f32);
  const Reference expected(c, x.values());
  expect_close(rstd.values(), expected.rstd, 1e-6, "rstd", 1);
  expect_close(mean.values(), expected.mean, 1e-7, "mean", 1);
}

TEST_P(NormFamily, a_nan_spoils_its_own_row_and_no_other) {
  for (const NormKind kind : kKinds) {
    Matrix x = Matrix::random(3, 40, 1);
    x.at(1, 39) = NAN;
    const Array in(machine, x), normed(machine, Matrix(3, 40)), mean(machine, Matrix(3, 1)),
        rstd(machine, Matrix(3, 1));
    machine.ops().norm().forward(machine.stream(), kind, kEps, in, {}, {}, {}, {}, normed, mean, rstd);
    const Doubles values = normed.values();
    for (std::int64_t i = 0; i < 40; ++i) {
      EXPECT_TRUE(std::isfinite(values[i]) && std::isnan(values[40 + i]) && std::isfinite(values[80 + i]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, NormFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaNorm, gives_the_same_bits_for_every_order_of_threads) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const Shape& shape : {Shape{40, 776, 0}, Shape{70, 33, 0}, Shape{6, 1536, 0}}) {
      expect_same_bits_in_all_orders([&](const Machine& machine) {
        const Case c(NormKind::layernorm, shape, type);
        const Matrix column(shape.rows, 1), row(1, shape.width);
        const Array x(machine, c.x, type), delta(machine, c.delta, type), d_normed(machine, c.d_normed, type);
        const Array normed(machine, c.x, type), d_x(machine, c.d_residual, type);
        const Array weight(machine, c.weight), bias(machine, c.bias), mean(machine, column), rstd(machine, column);
        const Array weight_grad(machine, row), bias_grad(machine, row);
        NormOps& ops = machine.ops().norm();
        ops.forward(machine.stream(), c.kind, kEps, x, delta, weight, bias, x, normed, mean, rstd);
        ops.backward(machine.stream(), c.kind, d_normed, x, weight, mean, rstd, d_x, weight_grad, bias_grad);
        return joined({&x, &normed, &d_x, &mean, &rstd, &weight_grad, &bias_grad});
      });
    }
  }
}

TEST(CudaNorm, missing_pieces_and_rows_beyond_the_widest_are_refused) {
  const Machine machine{cuda::emulation::Options{}};
  NormOps& ops = machine.ops().norm();
  const Array x(machine, Matrix(2, 4)), rstd(machine, Matrix(2, 1));
  EXPECT_THROW(ops.forward(machine.stream(), NormKind::rmsnorm, kEps, x, x, {}, {}, {}, x, {}, rstd), std::logic_error);
  EXPECT_THROW(ops.backward(machine.stream(), NormKind::layernorm, x, x, {}, {}, rstd, x, {}, {}), std::logic_error);
  const Array wide(machine, Matrix(1, 40000)), one(machine, Matrix(1, 1));
  expect_parts(
      error_of(Exit::usage,
               [&] { ops.forward(machine.stream(), NormKind::rmsnorm, kEps, wide, {}, {}, {}, {}, wide, {}, one); }),
      {"at most 16384 elements", "model.width is 40000", "--device cpu"});
}

}  // namespace
}  // namespace polaron::test

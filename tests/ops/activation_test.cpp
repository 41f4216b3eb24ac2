// Activations and their derivatives on blocks, against double precision and finite differences.
#include "cpu/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "ops/activation_reference.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

using cpu::ActivationBlock;

// Values near 0, of ordinary size, and far out on both sides.
Matrix values_everywhere(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t padding) {
  Matrix matrix = Matrix::random(rows, cols, seed, 2.0, 0.0, padding);
  const float special[] = {0.0F, 1e-8F, -1e-4F, 12.0F, -12.0F, 50.0F, -50.0F, 3e4F, -3e4F, 0.7F};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(cols, 10); ++i) matrix.at(0, i) = special[i];
  return matrix;
}

class ActivationKinds : public testing::TestWithParam<Activation> {};

TEST_P(ActivationKinds, matches_the_formula_on_any_width) {
  const Activation activation = GetParam();
  const bool gated = activation == Activation::swiglu;
  for (const std::int64_t cols : {1, 3, 5, 16, 32, 33, 77}) {
    const std::int64_t rows = 4;
    Matrix pre = values_everywhere(rows, cols, 11, 3);
    Matrix up = Matrix::random(rows, cols, 12, 1.0, 0.0, 3);
    Matrix activated(rows, cols, 5);
    const ActivationBlock block{rows, cols, pre.tensor().f32(), gated ? up.tensor().f32() : nullptr, cols + 3};
    cpu::activate_block(activation, block, activated.tensor().f32(), cols + 5);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        const double x = static_cast<double>(pre.at(r, c)), u = static_cast<double>(up.at(r, c));
        const double expected = reference_activation(activation, x, u);
        EXPECT_NEAR(activated.at(r, c), expected, 1e-6 * std::abs(expected) + 2e-7 * std::min(1.0, std::abs(x)))
            << name_of(activation) << " of " << x;
      }
    }
  }
}

TEST_P(ActivationKinds, derivative_matches_finite_differences_also_in_place) {
  const Activation activation = GetParam();
  const bool gated = activation == Activation::swiglu;
  for (const std::int64_t cols : {1, 3, 16, 32, 45}) {
    const std::int64_t rows = 3;
    const Matrix pre = Matrix::random(rows, cols, 21, 2.0, 0.0, 2), up = Matrix::random(rows, cols, 22, 1.0, 0.0, 2);
    Matrix d = Matrix::random(rows, cols, 23, 1.0, 0.0, 7);
    Matrix gate_in_place = pre, up_in_place = up;  // results overwrite the pre-activation
    const ActivationBlock block{rows, cols, gate_in_place.tensor().f32(), gated ? up_in_place.tensor().f32() : nullptr,
                                cols + 2};
    cpu::differentiate_block(activation, block, d.tensor().f32(), cols + 7, gate_in_place.tensor().f32(),
                             gated ? up_in_place.tensor().f32() : nullptr, cols + 2);
    Doubles expected, expected_up;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        const double x = static_cast<double>(pre.at(r, c)), u = static_cast<double>(up.at(r, c));
        expected.push_back(static_cast<double>(d.at(r, c)) * reference_derivative(activation, x, u));
        expected_up.push_back(static_cast<double>(d.at(r, c)) * reference_activation(activation, x, 1.0));
      }
    }
    expect_close(gate_in_place, expected, 2e-6, std::string(name_of(activation)) + " derivative", 1e-8);
    if (gated) expect_close(up_in_place, expected_up, 2e-6, "derivative by up", 1e-8);
  }
}

TEST_P(ActivationKinds, far_out_the_derivative_is_that_of_the_asymptote) {
  const Activation activation = GetParam();
  std::vector<float> pre = {-1e20F, -1e4F, -30.0F, 30.0F, 1e4F, 1e18F}, up(pre.size(), 1.0F), d(pre.size(), 1.0F);
  std::vector<float> d_pre(pre.size()), d_up(pre.size());
  const auto cols = static_cast<std::int64_t>(pre.size());
  cpu::differentiate_block(activation, {1, cols, pre.data(), up.data(), cols}, d.data(), cols, d_pre.data(),
                           d_up.data(), cols);
  for (std::size_t i = 0; i < pre.size(); ++i) {
    const float expected = pre[i] < 0 ? 0.0F : activation == Activation::relu2 ? 2.0F * pre[i] : 1.0F;
    EXPECT_NEAR(d_pre[i], expected, 1e-6F) << name_of(activation) << " at " << pre[i];
  }
}

TEST_P(ActivationKinds, nan_passes_through_forward_and_backward) {
  const Activation activation = GetParam();
  const std::int64_t cols = 32;
  std::vector<float> pre(cols, 0.5F), up(cols, 1.0F), d(cols, 1.0F), out(cols), d_pre(cols), d_up(cols);
  pre[7] = std::numeric_limits<float>::quiet_NaN();
  cpu::activate_block(activation, {1, cols, pre.data(), up.data(), cols}, out.data(), cols);
  cpu::differentiate_block(activation, {1, cols, pre.data(), up.data(), cols}, d.data(), cols, d_pre.data(),
                           d_up.data(), cols);
  for (std::int64_t c = 0; c < cols; ++c) {
    EXPECT_EQ(std::isnan(out[c]), c == 7) << c;
    EXPECT_EQ(std::isnan(d_pre[c]), c == 7) << c;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ActivationKinds,
                         testing::Values(Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2,
                                         Activation::swiglu),
                         [](const auto& kind) { return std::string(name_of(kind.param)); });

TEST(Activation, none_is_refused) {
  float x = 1.0F;
  EXPECT_THROW(cpu::activate_block(Activation::none, {1, 1, &x, nullptr, 1}, &x, 1), std::logic_error);
  EXPECT_THROW(cpu::differentiate_block(Activation::none, {1, 1, &x, nullptr, 1}, &x, 1, &x, nullptr, 1),
               std::logic_error);
}

}  // namespace
}  // namespace polaron::test

// The activation kernels against double precision; they are no op of their own, so only CUDA has them in this form.
#include "cuda/activation.h"

#include <cmath>
#include <stdexcept>

#include "machine.h"
#include "ops/activation_reference.h"

namespace polaron::test {
namespace {

class ActivationKernels : public testing::TestWithParam<Activation> {
 protected:
  const Machine machine{cuda::emulation::Options{.order = cuda::emulation::Order::random, .lazy_streams = true}};
  bool gated() const { return GetParam() == Activation::swiglu; }
  std::int64_t pre_width(std::int64_t width) const { return gated() ? 2 * width : width; }
};

const std::int64_t kWidths[] = {1, 3, 8, 12, 33, 128};

TEST_P(ActivationKernels, agree_with_the_formula_on_any_width) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t width : kWidths) {
      for (const std::int64_t padding : {0, 1, 8}) {
        Matrix pre = Matrix::random(5, pre_width(width), 1, 2.0);
        const float special[] = {0.0F, 1e-8F, -1e-4F, 12.0F, -12.0F, 50.0F, -50.0F, 3e4F, -3e4F};
        for (std::int64_t i = 0; i < std::min<std::int64_t>(width, 9); ++i) pre.at(0, i) = special[i];
        pre = rounded_to(type, pre);
        const Array in(machine, pre, type, padding), out(machine, Matrix(5, width), type, padding);
        cuda::activate(machine.stream(), GetParam(), in, out);
        Doubles expected;
        for (std::int64_t r = 0; r < 5; ++r) {
          for (std::int64_t c = 0; c < width; ++c) {
            const double up = gated() ? static_cast<double>(pre.at(r, width + c)) : 0.0;
            expected.push_back(reference_activation(GetParam(), static_cast<double>(pre.at(r, c)), up));
          }
        }
        const Doubles values = out.values();
        for (std::size_t i = 0; i < values.size(); ++i) {
          const double allowed = tolerance(type, 1e-6) * std::abs(expected[i]) + 3e-7;
          ASSERT_NEAR(values[i], expected[i], allowed) << name_of(GetParam()) << ", width " << width;
        }
      }
    }
  }
}

TEST_P(ActivationKernels, derivatives_agree_with_finite_differences_also_in_place) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t width : kWidths) {
      const Matrix pre = rounded_to(type, Matrix::random(4, pre_width(width), 1, 2.0));
      const Matrix d = rounded_to(type, Matrix::random(4, width, 2));
      Doubles expected;
      for (std::int64_t r = 0; r < 4; ++r) {
        const auto x = [&](std::int64_t c) { return static_cast<double>(pre.at(r, c)); };
        for (std::int64_t c = 0; c < width; ++c) {
          expected.push_back(static_cast<double>(d.at(r, c)) *
                             reference_derivative(GetParam(), x(c), gated() ? x(width + c) : 0.0));
        }
        for (std::int64_t c = 0; gated() && c < width; ++c) {
          expected.push_back(static_cast<double>(d.at(r, c)) * reference_activation(GetParam(), x(c), 1.0));
        }
      }
      const Array in(machine, pre, type, 8), gradient(machine, d, type),
          elsewhere(machine, Matrix(4, pre_width(width)), type);
      cuda::differentiate(machine.stream(), GetParam(), in, gradient, elsewhere);
      expect_close(elsewhere.values(), expected, tolerance(type, 2e-6), name_of(GetParam()), pre_width(width), 1e-7);
      cuda::differentiate(machine.stream(), GetParam(), in, gradient, in);
      EXPECT_EQ(in.values(), elsewhere.values());
    }
  }
}

TEST_P(ActivationKernels, far_out_they_follow_their_asymptote_and_nan_stays_nan) {
  Matrix pre = Matrix::filled(1, pre_width(7), 1.0F);
  const float x[] = {-1e20F, -1e4F, -30.0F, 30.0F, 1e4F, 1e18F, NAN};
  for (std::int64_t i = 0; i < 7; ++i) pre.at(0, i) = x[i];
  const Array in(machine, pre), d(machine, Matrix::filled(1, 7, 1.0F)), out(machine, Matrix(1, 7));
  cuda::activate(machine.stream(), GetParam(), in, out);
  EXPECT_TRUE(std::isnan(out.values()[6]));
  cuda::differentiate(machine.stream(), GetParam(), in, d, in);
  const Doubles slopes = in.values();
  for (std::int64_t i = 0; i < 6; ++i) {
    const float expected = x[i] < 0 ? 0.0F : GetParam() == Activation::relu2 ? 2.0F * x[i] : 1.0F;
    EXPECT_NEAR(slopes[i], expected, 1e-6) << name_of(GetParam()) << " at " << x[i];
  }
  EXPECT_TRUE(std::isnan(slopes[6]));
}

INSTANTIATE_TEST_SUITE_P(All, ActivationKernels,
                         testing::Values(Activation::gelu_tanh, Activation::gelu_erf, Activation::relu2,
                                         Activation::swiglu),
                         [](const auto& kind) { return std::string(name_of(kind.param)); });

TEST(CudaActivation, none_is_refused) {
  const Machine machine{cuda::emulation::Options{}};
  const Array x(machine, Matrix(1, 4));
  EXPECT_THROW(cuda::activate(machine.stream(), Activation::none, x, x), std::logic_error);
}

}  // namespace
}  // namespace polaron::test

#include "family.h"
#include "ops/mix_cases.h"

namespace polaron::test {
namespace {

class MixFamily : public Family {
 protected:
  MixOps& ops() const { return machine.ops().mix(); }
  const float* number(const Array& values, std::int64_t i) const { return values.tensor().f32() + i; }
};

TEST_P(MixFamily, forward_adds_what_its_terms_say_also_in_place) {
  for_types([&](DType type) {
    for (const MixSizes& s : kMixSizes) {
      for (const std::int64_t padding : {0, 1, 8}) {
        const Matrix x = rounded_to(type, Matrix::random(s.rows, s.cols, 1));
        const Matrix y = rounded_to(type, Matrix::random(s.rows, s.cols, 2));
        const Array coefficients(machine, Matrix::random(1, 2, 3));
        const Doubles c = coefficients.values();
        const auto a = static_cast<float>(c[0]), b = static_cast<float>(c[1]);
        const Array on_x(machine, x, type, padding), on_y(machine, y, type),
            out(machine, Matrix(s.rows, s.cols), type, 2);
        ops().forward(machine.stream(),
                      std::vector<MixTerm>{{on_x, number(coefficients, 0)}, {on_y, number(coefficients, 1)}}, out);
        expect_close(out.values(), mixed(x, a, y, b), tolerance(type, 1e-6), "two terms", s.cols);
        ops().forward(machine.stream(), std::vector<MixTerm>{{on_x}}, out);
        expect_close(out.values(), x.values(), 0.0, "a copy", s.cols);
        ops().forward(machine.stream(), std::vector<MixTerm>{{on_x}, {on_y, number(coefficients, 1)}}, on_x);
        expect_close(on_x.values(), mixed(x, 1.0F, y, b), tolerance(type, 1e-6), "in place", s.cols);
      }
    }
  });
}

TEST_P(MixFamily, backward_scales_gradients_and_gives_those_of_coefficients) {
  for_types([&](DType type) {
    for (const MixSizes& s : kMixSizes) {
      for (const std::int64_t padding : {0, 3, 8}) {
        const Matrix x = rounded_to(type, Matrix::random(s.rows, s.cols, 1));
        const Matrix y = rounded_to(type, Matrix::random(s.rows, s.cols, 2));
        const Matrix d = rounded_to(type, Matrix::random(s.rows, s.cols, 3));
        const Matrix before = rounded_to(type, Matrix::random(s.rows, s.cols, 4));
        const Array coefficients(machine, Matrix::random(1, 2, 5)), sums(machine, Matrix::random(1, 2, 6));
        const Doubles c = coefficients.values(), sums_before = sums.values();
        const auto a = static_cast<float>(c[0]), b = static_cast<float>(c[1]);
        const Array on_x(machine, x, type, padding), on_y(machine, y, type), on_d(machine, d, type, padding);
        const Array d_y(machine, before, type);
        ops().backward(
            machine.stream(), on_d,
            std::vector<MixTerm>{{on_x, number(coefficients, 0)}, {on_y, number(coefficients, 1)}},
            std::vector<MixGradient>{{on_d, false, sums.tensor().f32()}, {d_y, true, sums.tensor().f32() + 1}});
        expect_close(on_d.values(), scaled_sum(d.values(), a, d.values(), 0.0F), tolerance(type, 1e-6), "d_x", s.cols);
        expect_close(d_y.values(), scaled_sum(before.values(), 1.0F, d.values(), b), tolerance(type, 1e-6), "d_y",
                     s.cols);
        const double scale = 1e-6 * static_cast<double>(s.rows * s.cols + 1);
        EXPECT_NEAR(sums.values()[0], sums_before[0] + dot(d.values(), x.values()), scale);
        EXPECT_NEAR(sums.values()[1], sums_before[1] + dot(d.values(), y.values()), scale);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Places, MixFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaMix, gives_the_same_bits_for_every_order_of_threads) {
  expect_same_bits_in_all_orders([](const Machine& machine) {
    const Array x(machine, Matrix::random(90, 129, 1)), d(machine, Matrix::random(90, 129, 2));
    const Array coefficient(machine, Matrix::random(1, 1, 3)), sum(machine, Matrix(1, 1));
    machine.ops().mix().backward(machine.stream(), d, std::vector<MixTerm>{{x, coefficient.tensor().f32()}},
                                 std::vector<MixGradient>{{d, false, sum.tensor().f32()}});
    return joined({&d, &sum});
  });
}

}  // namespace
}  // namespace polaron::test

#include <cmath>
#include <limits>
#include <stdexcept>

#include "emulation/runtime.h"
#include "family.h"
#include "ops/loss_reference.h"

namespace polaron::test {
namespace {

struct Case {
  std::int64_t rows, vocabulary, padded, padding;
  Softcap softcap;
  double deviation;
};
// Rows narrower than a warp and wider than a round of the block, odd vocabularies, rows that are not aligned.
constexpr Softcap kNone{}, kTanh15{15.0F}, kTanh30{30.0F}, kAlgebraic15{15.0F, Softcap::Form::algebraic};
const Case kCases[] = {{1, 1, 1, 0, kNone, 1.0},          {3, 2, 16, 0, kNone, 3.0},
                       {17, 5, 8, 3, kTanh15, 1.0},       {4, 257, 320, 8, kNone, 4.0},
                       {2, 1025, 1088, 0, kTanh15, 10.0}, {2, 4099, 4160, 0, kNone, 3.0},
                       {2, 4099, 4101, 1, kTanh30, 3.0},  {6, 33, 40, 0, kNone, 100.0},
                       {3, 3000, 3000, 0, kNone, 1e-3},   {3, 1025, 1088, 0, kAlgebraic15, 10.0}};

LossReference reference(const Matrix& z, const Case& c, const std::vector<std::int32_t>& targets, double scale) {
  return loss_reference(z.values(), c.vocabulary, c.padded, c.softcap, targets, scale);
}

Matrix logits_of(const Case& c, DType type) {
  Matrix logits = rounded_to(type, Matrix::random(c.rows, c.padded, 1, c.deviation, 0.3));
  for (std::int64_t n = 0; n < c.rows; ++n) {
    for (std::int64_t v = c.vocabulary; v < c.padded; ++v) logits.at(n, v) = NAN;  // never to be read
  }
  return logits;
}

class LossFamily : public Family {
 protected:
  // Returns the loss; `before` is what was in *loss_sum.
  double run(const Array& logits, std::int64_t vocabulary, const std::vector<std::int32_t>& targets,
             const Softcap& softcap, float scale, bool gradient, double before = 0.0) const {
    const Array on_device(machine, targets);
    DeviceScalar<double> loss(machine.device());
    loss.set(machine.stream(), before);
    machine.ops().loss().cross_entropy(machine.stream(), logits, vocabulary, on_device, softcap, scale, gradient,
                                       loss.device());
    return loss.get(machine.stream());
  }
};

TEST_P(LossFamily, loss_and_gradient_agree_with_the_reference) {
  for_types([&](DType type) {
    for (const Case& c : kCases) {
      const testing::ScopedTrace trace(__FILE__, __LINE__,
                                       std::to_string(c.rows) + " x " + std::to_string(c.vocabulary));
      const Matrix z = logits_of(c, type);
      const std::vector<std::int32_t> targets = random_integers(c.rows, static_cast<std::int32_t>(c.vocabulary), 2);
      const LossReference expected = reference(z, c, targets, 0.25);
      const Array logits(machine, z, type, c.padding);
      const double loss = run(logits, c.vocabulary, targets, c.softcap, 0.25F, true);
      const double rounding = c.softcap.cap > 0.0F ? 3e-7 : 1e-7;  // capped logits and their exponentials are fp32
      EXPECT_NEAR(loss, expected.loss, 1e-6 * expected.loss + rounding * static_cast<double>(c.rows));
      expect_close(logits.values(), expected.gradient, tolerance(type, 2e-6), "gradient", c.padded, 2e-7 * 0.25);
      const Doubles gradient = logits.values();
      for (std::int64_t n = 0; n < c.rows; ++n) {
        for (std::int64_t v = c.vocabulary; v < c.padded; ++v) ASSERT_EQ(gradient[n * c.padded + v], 0.0);
      }
      const Array again(machine, z, type, c.padding), once_more(machine, z, type, c.padding);
      EXPECT_EQ(run(again, c.vocabulary, targets, c.softcap, 0.25F, false), loss) << "without gradient";
      EXPECT_EQ(run(once_more, c.vocabulary, targets, c.softcap, 1.0F, false, 1000.0), 1000.0 + loss) << "added";
    }
  });
}

// Rows too wide for shared memory take another path.
TEST_P(LossFamily, a_row_of_a_large_vocabulary_agrees_with_the_reference) {
  for_types([&](DType type) {
    for (const std::int64_t vocabulary : {24436, 28000, 57400}) {
      const Case c{1, vocabulary, vocabulary + 24, 0, kNone, 3.0};
      const Matrix z = logits_of(c, type);
      const std::vector<std::int32_t> targets = {static_cast<std::int32_t>(vocabulary - 1)};
      const LossReference expected = reference(z, c, targets, 1.0);
      const Array logits(machine, z, type);
      EXPECT_NEAR(run(logits, c.vocabulary, targets, {}, 1.0F, true), expected.loss, 1e-6 * expected.loss);
      expect_close(logits.values(), expected.gradient, tolerance(type, 2e-6), "gradient", c.padded, 2e-7);
    }
  });
}

TEST_P(LossFamily, rows_without_a_target_add_no_loss_and_have_zero_gradient) {
  for_types([&](DType type) {
    const Case c{5, 70, 80, 0, kNone, 2.0};
    Matrix z = logits_of(c, type);
    const std::vector<std::int32_t> targets = {7, -1, 69, -1, 0};
    const LossReference expected = reference(z, c, targets, 1.0);
    z.at(1, 3) = NAN;  // not part of the loss, so not part of anything
    const Array logits(machine, z, type);
    EXPECT_NEAR(run(logits, c.vocabulary, targets, {}, 1.0F, true), expected.loss, 1e-6 * expected.loss);
    expect_close(logits.values(), expected.gradient, tolerance(type, 2e-6), "gradient", c.padded);
  });
}

TEST_P(LossFamily, a_non_finite_logit_anywhere_makes_loss_and_gradient_nan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Softcap& softcap : {kNone, kTanh15, kAlgebraic15}) {
    for (const float bad : {kInfinity, -kInfinity, NAN}) {
      for (const std::int64_t place : {0, 17, 1039}) {
        Matrix z = Matrix::random(2, 1040, 1);
        z.at(0, place) = bad;
        const Array logits(machine, z);
        EXPECT_FALSE(std::isfinite(run(logits, 1040, {17, 5}, softcap, 1.0F, true))) << bad << " at " << place;
        const Doubles gradient = logits.values();
        EXPECT_TRUE(std::isnan(gradient[0]) && std::isfinite(gradient[1040]));
      }
    }
  }
}

TEST_P(LossFamily, large_and_equal_logits_are_no_problem) {
  for (const float offset : {0.0F, 1e4F, -1e4F, 1e30F, -1e30F}) {
    const Array logits(machine, Matrix::filled(1, 5000, offset));
    EXPECT_NEAR(run(logits, 5000, {4999}, {}, 1.0F, true), std::log(5000.0), 1e-6);
    const Doubles gradient = logits.values();
    EXPECT_NEAR(gradient[0], 1.0 / 5000.0, 1e-9);
    EXPECT_NEAR(gradient[4999], 1.0 / 5000.0 - 1.0, 1e-6);
  }
}

TEST_P(LossFamily, a_logit_far_beyond_the_soft_cap_counts_as_the_cap) {
  for (const Softcap& softcap : {kTanh15, kAlgebraic15}) {
    for (const float logit : {1e9F, 4e20F, 3e38F, -4e20F}) {
      Matrix z(1, 1040);
      z.at(0, 0) = logit;
      const LossReference expected = loss_reference(z.values(), 1040, 1040, softcap, {0}, 1.0);
      const Array logits(machine, z);
      // Terms of e^-15 are added to the target's 1 in fp32: 64 of them on the CPU, each rounded by up to 2^-24.
      const double rounding = 64 * 0x1p-24;
      EXPECT_NEAR(run(logits, 1040, {0}, softcap, 1.0F, true), expected.loss, 1e-6 * expected.loss + rounding) << logit;
      EXPECT_NEAR(logits.values()[1], expected.gradient[1], (1e-6 + rounding) * std::abs(expected.gradient[1]))
          << logit;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, LossFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaLoss, gives_the_same_bits_for_every_order_of_threads) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const Case& c : {Case{9, 2040, 2048, 0, kNone, 3.0}, Case{5, 1001, 1001, 0, kTanh30, 3.0}}) {
      expect_same_bits_in_all_orders([&](const Machine& machine) {
        const Array logits(machine, Matrix::random(c.rows, c.padded, 1, 3.0), type), loss(machine, Matrix(1, 2));
        const Array targets(machine, random_integers(c.rows, static_cast<std::int32_t>(c.vocabulary), 2));
        machine.ops().loss().cross_entropy(machine.stream(), logits, c.vocabulary, targets, c.softcap, 0.5F, true,
                                           static_cast<double*>(loss.tensor().data));
        return joined({&logits, &loss});
      });
    }
  }
}

TEST(CudaLoss, has_the_same_bits_where_a_row_does_not_fit_into_shared_memory) {
  const auto result = [](std::size_t shared) {
    cuda::emulation::fake_device().shared = shared;
    const Machine machine{cuda::emulation::Options{}};
    const Array logits(machine, Matrix::random(1, 51200, 1, 3.0), DType::bf16), loss(machine, Matrix(1, 2));
    const Array targets(machine, std::vector<std::int32_t>{51199});
    machine.ops().loss().cross_entropy(machine.stream(), logits, 51200, targets, kNone, 1.0F, true,
                                       static_cast<double*>(loss.tensor().data));
    machine.stream().synchronize();
    cuda::emulation::fake_device() = {};
    return joined({&logits, &loss});
  };
  EXPECT_EQ(result(std::size_t{227} << 10U), result(std::size_t{99} << 10U));
}

// A row and the static shared memory are more than a block has unasked.
TEST(CudaLoss, asks_for_shared_memory_where_a_row_nearly_fills_what_is_there) {
  const Machine machine{cuda::emulation::Options{}};
  const std::int64_t vocabulary = (48 << 10) / 2;
  const Array logits(machine, Matrix(1, vocabulary), DType::bf16), loss(machine, Matrix(1, 2));
  const Array targets(machine, std::vector<std::int32_t>{0});
  machine.ops().loss().cross_entropy(machine.stream(), logits, vocabulary, targets, kNone, 1.0F, true,
                                     static_cast<double*>(loss.tensor().data));
  machine.stream().synchronize();
  EXPECT_NEAR(logits.values()[1], 1.0 / static_cast<double>(vocabulary), 1e-6);
}

TEST(CudaLoss, impossible_vocabularies_are_refused_and_targets_give_nan) {
  const Machine machine{cuda::emulation::Options{}};
  const Array logits(machine, Matrix(1, 8)), targets(machine, std::vector<std::int32_t>{6});
  DeviceScalar<double> loss(machine.device());
  LossOps& ops = machine.ops().loss();
  for (const std::int64_t vocabulary : {0, 9}) {
    EXPECT_THROW(ops.cross_entropy(machine.stream(), logits, vocabulary, targets, Softcap{}, 1.0F, true, loss.device()),
                 std::logic_error);
  }
  ops.cross_entropy(machine.stream(), logits, 6, targets, Softcap{}, 1.0F, true, loss.device());
  EXPECT_TRUE(std::isnan(loss.get(machine.stream())));
}

}  // namespace
}  // namespace polaron::test

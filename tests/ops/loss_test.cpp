#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <ostream>
#include <stdexcept>

#include "cpu/families.h"
#include "ops/loss_reference.h"

namespace polaron::test {
namespace {

struct Case {
  std::int64_t rows, vocabulary, padded;
  Softcap softcap;
  double deviation;
  DType type = DType::f32;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.rows << " x " << c.vocabulary << " of " << c.padded << ", cap " << c.softcap.cap
               << (c.softcap.form == Softcap::Form::tanh ? "" : " algebraic") << ", deviation " << c.deviation << ", "
               << name_of(c.type);
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Softcap softcap : {Softcap{}, Softcap{15.0F}, Softcap{15.0F, Softcap::Form::algebraic}}) {
    all.push_back({1, 1, 1, softcap, 1.0});
    all.push_back({3, 2, 16, softcap, 3.0});
    all.push_back({17, 5, 8, softcap, 1.0});
    all.push_back({4, 257, 320, softcap, 4.0});
    all.push_back({2, 1024, 1024, softcap, 2.0});
    all.push_back({2, 1025, 1088, softcap, 10.0});
    all.push_back({3, 50257, 50304, softcap, 3.0});
    all.push_back({6, 33, 40, softcap, 100.0});  // sums of one term: most probabilities vanish
    all.push_back({6, 3000, 3000, softcap, 1e-3});
  }
  const std::size_t count = all.size();
  for (std::size_t i = 0; i < count; ++i) {
    all.push_back(all[i]);
    all.back().type = DType::bf16;
  }
  return all;
}

// z: dense [rows, padded].
LossReference reference(const Doubles& z, const Case& c, const std::vector<std::int32_t>& targets, double scale) {
  return loss_reference(z, c.vocabulary, c.padded, c.softcap, targets, scale);
}

class CrossEntropy : public testing::TestWithParam<Case> {
 protected:
  CrossEntropy() {
    for (std::int64_t n = 0; n < c.rows; ++n) {
      for (std::int64_t v = c.vocabulary; v < c.padded; ++v) logits.at(n, v) = NAN;  // never to be read
    }
  }
  Doubles readable() const {
    Doubles z = logits.values();
    for (double& value : z) value = std::isnan(value) ? 0.0 : value;
    return z;
  }

  Case c = GetParam();
  Matrix logits = Matrix::random(c.rows, c.padded, 1, c.deviation, 0.3, 3, c.type);
  Column targets{random_integers(c.rows, static_cast<std::int32_t>(c.vocabulary), 2)};
  HostStream stream;
  std::unique_ptr<LossOps> ops = cpu::make_loss_ops();
};

TEST_P(CrossEntropy, agrees_with_the_reference) {
  const LossReference expected = reference(readable(), c, targets.values(), 0.25);
  double loss = 0.0;
  ops->cross_entropy(stream, logits.tensor(), c.vocabulary, targets.tensor(), c.softcap, 0.25F, true, &loss);
  // A capped logit is rounded to fp32 before its exponential is taken.
  const double rounding = c.softcap.cap > 0.0F ? 2e-7 : 2e-8;
  EXPECT_NEAR(loss, expected.loss, 1e-6 * expected.loss + rounding * static_cast<double>(c.rows));
  // A row's gradient is measured against its largest entry, the target's.
  expect_close(logits, expected.gradient, 1e-6, "gradient", 2e-7 * 0.25);
  for (std::int64_t n = 0; n < c.rows; ++n) {
    for (std::int64_t v = c.vocabulary; v < c.padded; ++v) ASSERT_EQ(logits.at(n, v), 0.0F) << n << ", " << v;
  }
}

TEST_P(CrossEntropy, without_gradient_the_loss_has_the_same_bits_and_is_added_up) {
  Matrix first = logits, second = logits;
  double with = 0.0, without = 0.0, added = 1000.0;
  ops->cross_entropy(stream, first.tensor(), c.vocabulary, targets.tensor(), c.softcap, 1.0F, true, &with);
  ops->cross_entropy(stream, second.tensor(), c.vocabulary, targets.tensor(), c.softcap, 1.0F, false, &without);
  EXPECT_EQ(with, without);
  ops->cross_entropy(stream, logits.tensor(), c.vocabulary, targets.tensor(), c.softcap, 1.0F, false, &added);
  EXPECT_EQ(added, 1000.0 + with);
}

TEST_P(CrossEntropy, gradient_is_the_derivative_of_the_loss) {
  const Doubles at = readable();
  double loss = 0.0;
  ops->cross_entropy(stream, logits.tensor(), c.vocabulary, targets.tensor(), c.softcap, 2.0F, true, &loss);
  const auto f = [&](const Doubles& z) { return 2.0 * reference(z, c, targets.values(), 1.0).loss; };
  expect_derivative(logits, f, at, 1e-5, "gradient", 1e-6, 24);
}

INSTANTIATE_TEST_SUITE_P(Cases, CrossEntropy, testing::ValuesIn(cases()));

TEST(CrossEntropyRows, rows_without_a_target_add_no_loss_and_have_zero_gradient) {
  for (const DType type : kActivationTypes) {
    const Case c{5, 70, 80, {}, 2.0, type};
    Matrix logits = Matrix::random(c.rows, c.padded, 1, 1.0, 0.0, 0, type);
    logits.at(1, 3) = NAN;  // not part of the loss, so not part of anything
    Doubles z = logits.values();
    z[c.padded + 3] = 0.0;
    Column targets({7, -1, 69, -1, 0});
    const LossReference expected = reference(z, c, targets.values(), 1.0);
    HostStream stream;
    double loss = 0.0;
    cpu::make_loss_ops()->cross_entropy(stream, logits.tensor(), c.vocabulary, targets.tensor(), Softcap{}, 1.0F, true,
                                        &loss);
    EXPECT_NEAR(loss, expected.loss, 1e-6 * expected.loss);
    expect_close(logits, expected.gradient, 1e-6, "gradient");
    for (std::int64_t v = 0; v < c.padded; ++v) {
      EXPECT_EQ(logits.at(1, v), 0.0F);
      EXPECT_EQ(logits.at(3, v), 0.0F);
    }
  }
}

TEST(CrossEntropyRows, a_non_finite_logit_anywhere_makes_loss_and_gradient_nan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto ops = cpu::make_loss_ops();
  HostStream stream;
  const auto check = [&](DType type, float softcap, float bad, std::int64_t place, bool gradient) {
    Matrix logits = Matrix::random(2, 1040, 1, 1.0, 0.0, 0, type);
    logits.at(0, place) = bad;
    Column targets({17, 5});
    double loss = 0.0;
    ops->cross_entropy(stream, logits.tensor(), 1040, targets.tensor(), Softcap{softcap}, 1.0F, gradient, &loss);
    EXPECT_FALSE(std::isfinite(loss)) << bad << " at " << place << ", cap " << softcap;
    if (gradient) {
      EXPECT_TRUE(std::isnan(logits.at(0, 0))) << bad << " at " << place;
      EXPECT_TRUE(std::isfinite(logits.at(1, 0)));
    }
  };
  for (const DType type : kActivationTypes) {
    for (const float softcap : {0.0F, 15.0F}) {
      for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
        for (const std::int64_t place : {0, 1, 17, 1023, 1024, 1039}) {
          check(type, softcap, bad, place, false);
          check(type, softcap, bad, place, true);
        }
      }
    }
  }
}

TEST(CrossEntropyRows, large_and_equal_logits_are_no_problem) {
  const auto ops = cpu::make_loss_ops();
  HostStream stream;
  for (const DType type : kActivationTypes) {
    const double unit = unit_roundoff(type);
    for (const float offset : {0.0F, 1e4F, -1e4F, 1e30F}) {
      Matrix logits = Matrix::filled(1, 50000, offset, 0, type);
      Column targets({49999});
      double loss = 0.0;
      ops->cross_entropy(stream, logits.tensor(), 50000, targets.tensor(), Softcap{}, 1.0F, true, &loss);
      EXPECT_NEAR(loss, std::log(50000.0), 1e-6);
      EXPECT_NEAR(logits.at(0, 0), 1.0 / 50000.0, 1e-10 + unit / 50000.0);
      EXPECT_NEAR(logits.at(0, 49999), 1.0 / 50000.0 - 1.0, 1e-6 + unit);
    }
  }
}

TEST(CrossEntropyRows, a_logit_far_beyond_the_soft_cap_counts_as_the_cap) {
  const auto ops = cpu::make_loss_ops();
  HostStream stream;
  for (const Softcap::Form form : {Softcap::Form::tanh, Softcap::Form::algebraic}) {
    const Case c{1, 4, 4, Softcap{15.0F, form}, 0.0};
    for (const float logit : {1e9F, 4e20F, 3e38F, -4e20F}) {
      SCOPED_TRACE(logit);
      Matrix logits(1, 4);
      logits.at(0, 0) = logit;
      const LossReference expected = reference(logits.values(), c, {0}, 1.0);
      Column targets({0});
      double loss = 0.0;
      ops->cross_entropy(stream, logits.tensor(), 4, targets.tensor(), c.softcap, 1.0F, true, &loss);
      const double rounding = std::ldexp(15.0, -23);  // of the cap in fp32: the target is capped in double
      EXPECT_NEAR(loss, expected.loss, 1e-6 * expected.loss + rounding);
      expect_close(logits, expected.gradient, 1e-6, "gradient", rounding);
    }
  }
}

// The sum of exponentials is fp32: next to the target's 1 each of the two others is rounded to half a unit in the last
// place.
TEST(CrossEntropyRows, a_surely_predicted_target_is_off_by_no_more_than_the_rounding_of_its_sum) {
  for (const float logit : {2.0F, 8.0F, 11.3F, 14.0F, 16.5F}) {  // probabilities up to 1 - 1.4e-7
    const Case c{1, 3, 3, {}, 0.0};
    Matrix logits(1, 3);
    logits.at(0, 1) = logit;
    Column targets({1});
    const LossReference expected = reference(logits.values(), c, targets.values(), 1.0);
    HostStream stream;
    double loss = 0.0;
    cpu::make_loss_ops()->cross_entropy(stream, logits.tensor(), 3, targets.tensor(), Softcap{}, 1.0F, true, &loss);
    const double rounding = 2 * std::ldexp(1.0, -24) + 2e-7 * expected.loss;
    EXPECT_NEAR(loss, expected.loss, rounding) << logit;
    EXPECT_NEAR(logits.at(0, 1), expected.gradient[1], rounding) << logit;
    EXPECT_NEAR(logits.at(0, 1), std::expm1(-loss), 1e-7 * std::abs(expected.gradient[1])) << logit;
  }
}

TEST(CrossEntropyRows, gives_the_same_bits_for_any_number_of_threads) {
  for (const float softcap : {0.0F, 30.0F}) {
    const auto run = [&](DType type, int threads) {
      const Threads scope(threads);
      Matrix logits = Matrix::random(37, 2050, 1, 3.0, 0.0, 0, type);
      Column targets(random_integers(37, 2040, 2));
      HostStream stream;
      double loss = 0.0;
      cpu::make_loss_ops()->cross_entropy(stream, logits.tensor(), 2040, targets.tensor(), Softcap{softcap}, 0.5F, true,
                                          &loss);
      return std::pair(loss, logits);
    };
    for (const DType type : kActivationTypes) {
      const auto [loss, gradient] = run(type, 1);
      for (const int threads : {1, 2, 3}) {
        const auto [loss_again, gradient_again] = run(type, threads);
        EXPECT_EQ(loss, loss_again) << threads;
        EXPECT_TRUE(gradient.same_bits(gradient_again)) << threads;
      }
    }
  }
}

TEST(CrossEntropyRows, impossible_targets_vocabularies_and_types_are_refused) {
  Matrix logits(1, 8);
  HostStream stream;
  double loss = 0.0;
  const auto ops = cpu::make_loss_ops();
  const auto call = [&](Tensor tensor, std::int64_t vocabulary, std::int32_t target) {
    Column targets({target});
    ops->cross_entropy(stream, tensor, vocabulary, targets.tensor(), Softcap{}, 1.0F, true, &loss);
  };
  EXPECT_THROW(call(logits.tensor(), 6, 6), std::logic_error);
  EXPECT_THROW(call(logits.tensor(), 6, -2), std::logic_error);
  EXPECT_THROW(call(logits.tensor(), 9, 0), std::logic_error);
  EXPECT_THROW(call(logits.tensor(), 0, -1), std::logic_error);
  Tensor wrong = logits.tensor();
  wrong.dtype = DType::i32;
  EXPECT_THROW(call(wrong, 8, 0), std::logic_error);
}

}  // namespace
}  // namespace polaron::test

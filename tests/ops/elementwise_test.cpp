#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "cpu/families.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

const std::int64_t kSizes[] = {1, 2, 15, 16, 17, 100, 16384, 16385, 40000, 0, 3};

// torch.optim.AdamW, as its documentation writes it.
void adamw_reference(Doubles& p, const std::vector<float>& g, Doubles& m, Doubles& v, const AdamWRange& r,
                     double clip) {
  const double b1 = r.beta1, b2 = r.beta2, lr = r.lr;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double gradient = clip * g[i];
    p[i] *= 1.0 - lr * r.weight_decay;
    m[i] = b1 * m[i] + (1.0 - b1) * gradient;
    v[i] = b2 * v[i] + (1.0 - b2) * gradient * gradient;
    const double m_hat = m[i] / (1.0 - std::pow(b1, r.step)), v_hat = v[i] / (1.0 - std::pow(b2, r.step));
    p[i] -= lr * m_hat / (std::sqrt(v_hat) + r.eps);
  }
}

constexpr bf16 kUntouched{0x1234U};

// n elements for a working copy, and one more that must stay as it is.
std::vector<bf16> working_copy(std::int64_t n) { return {static_cast<std::size_t>(n + 1), kUntouched}; }

void expect_rounded(const std::vector<bf16>& working, const std::vector<float>& master) {
  for (std::size_t i = 0; i < master.size(); ++i) ASSERT_EQ(working[i].bits, to_bf16(master[i]).bits) << i;
  EXPECT_EQ(working.back().bits, kUntouched.bits);
}

void expect_untouched(const std::vector<bf16>& working) {
  for (const bf16 element : working) ASSERT_EQ(element.bits, kUntouched.bits);
}

struct Adam {
  std::vector<float> p, g, m, v;
  std::vector<bf16> working;
  Doubles p_expected, m_expected, v_expected;
  AdamWRange range{};

  Adam(std::int64_t n, std::uint64_t seed)
      : p(random_floats(n, seed)),
        g(n),
        m(n),
        v(n),
        working(working_copy(n)),
        p_expected(to_doubles(p)),
        m_expected(n),
        v_expected(n) {
    range = {p.data(), g.data(), m.data(), v.data(), n, 3e-3F, 0.9F, 0.95F, 1e-8F, 0.1F, 0, nullptr};
  }
};

std::vector<Adam> adams() {
  std::vector<Adam> all;
  all.reserve(std::size(kSizes));
  for (const std::int64_t n : kSizes) {
    Adam& adam = all.emplace_back(n, static_cast<std::uint64_t>(n));
    adam.range.lr *= static_cast<float>(1 + n % 3);  // every range has its own settings
    adam.range.weight_decay = n % 2 == 0 ? 0.0F : 0.1F;
    adam.range.beta2 = n % 5 == 0 ? 0.999F : 0.95F;
  }
  return all;
}

std::vector<AdamWRange> ranges_of(std::vector<Adam>& all) {
  std::vector<AdamWRange> ranges;
  for (Adam& adam : all) ranges.push_back(adam.range);
  return ranges;
}

TEST(AdamW, twenty_steps_agree_with_the_reference) {
  const float clip = 0.37F;
  const std::int32_t apply = 1;
  HostStream stream;
  const auto ops = cpu::make_elementwise_ops();
  std::vector<Adam> all = adams();
  for (std::int64_t step = 1; step <= 20; ++step) {
    for (Adam& adam : all) {
      adam.range.step = step;
      const std::vector<float> g = random_floats(adam.range.n, 1000 + step, 0.1 * static_cast<double>(step), 0.05);
      std::copy(g.begin(), g.end(), adam.g.begin());
      adamw_reference(adam.p_expected, adam.g, adam.m_expected, adam.v_expected, adam.range,
                      step % 2 == 0 ? clip : 1.0);
    }
    ops->adamw(stream, ranges_of(all), step % 2 == 0 ? StepGate{&clip, &apply} : StepGate{});
  }
  for (const Adam& adam : all) {
    expect_close(to_doubles(adam.p), adam.p_expected, 2e-6, "parameter", 100);
    expect_close(to_doubles(adam.m), adam.m_expected, 2e-6, "m", 100);
    expect_close(to_doubles(adam.v), adam.v_expected, 2e-6, "v", 100);
  }
}

TEST(AdamW, the_working_copy_is_the_rounded_parameter_and_changes_nothing_else) {
  std::vector<Adam> with = adams(), without = adams();
  HostStream stream;
  const auto ops = cpu::make_elementwise_ops();
  for (std::int64_t step = 1; step <= 3; ++step) {
    for (std::vector<Adam>* all : {&with, &without}) {
      for (Adam& adam : *all) {
        adam.range.step = step;
        if (all == &with) adam.range.working = adam.working.data();
        adam.g = random_floats(adam.range.n, 10 + step);
        adam.range.gradient = adam.g.data();
      }
      ops->adamw(stream, ranges_of(*all), {});
    }
    for (std::size_t i = 0; i < with.size(); ++i) {
      EXPECT_EQ(with[i].p, without[i].p);
      expect_rounded(with[i].working, with[i].p);
    }
  }
}

TEST(AdamW, a_zero_gradient_moves_nothing_but_the_decay) {
  Adam adam(33, 1);
  adam.range.step = 1;
  HostStream stream;
  cpu::make_elementwise_ops()->adamw(stream, std::span(&adam.range, 1), {});
  Doubles expected = adam.p_expected;
  for (double& value : expected) value *= 1.0 - static_cast<double>(adam.range.lr) * 0.1;
  expect_close(to_doubles(adam.p), expected, 1e-7, "parameter", 33);
}

TEST(AdamW, a_closed_gate_leaves_every_bit_as_it_was) {
  std::vector<Adam> all = adams();
  for (Adam& adam : all) {
    adam.range.step = 3;
    adam.range.working = adam.working.data();
    std::fill(adam.g.begin(), adam.g.end(), std::numeric_limits<float>::quiet_NaN());
  }
  const std::int32_t apply = 0;
  const float clip = std::numeric_limits<float>::quiet_NaN();
  HostStream stream;
  cpu::make_elementwise_ops()->adamw(stream, ranges_of(all), {&clip, &apply});
  for (const Adam& adam : all) {
    EXPECT_EQ(to_doubles(adam.p), adam.p_expected);
    EXPECT_EQ(to_doubles(adam.m), adam.m_expected);
    EXPECT_EQ(to_doubles(adam.v), adam.v_expected);
    expect_untouched(adam.working);
  }
}

TEST(AdamW, gives_the_same_bits_for_any_number_of_threads) {
  const auto run = [](int threads) {
    const Threads scope(threads);
    std::vector<Adam> all = adams();
    for (std::uint64_t seed = 0; seed < 300; ++seed) {  // many ranges shorter than a chunk
      all.emplace_back(static_cast<std::int64_t>(seed * seed % 700), seed);
    }
    for (Adam& adam : all) {
      adam.range.step = 2;
      adam.range.n = static_cast<std::int64_t>(adam.p.size());
      const std::vector<float> g = random_floats(adam.range.n, 5);
      std::copy(g.begin(), g.end(), adam.g.begin());
    }
    HostStream stream;
    cpu::make_elementwise_ops()->adamw(stream, ranges_of(all), {});
    std::vector<std::vector<float>> result;
    for (const Adam& adam : all) {
      result.push_back(adam.p);
      result.push_back(adam.m);
      result.push_back(adam.v);
    }
    return result;
  };
  const auto one = run(1);
  for (const int threads : {1, 2, 3, 7, 16}) EXPECT_TRUE(run(threads) == one) << threads;
}

struct Sgd {
  std::vector<float> p, g, b;
  std::vector<bf16> working;
  Doubles p_expected, b_expected;
  SgdRange range{};

  Sgd(std::int64_t n, bool momentum, bool nesterov)
      : p(random_floats(n, 3)), g(n), b(n), working(working_copy(n)), p_expected(to_doubles(p)), b_expected(n) {
    range = {p.data(), g.data(), momentum ? b.data() : nullptr, n, 0.05F, 0.9F, 0.02F, nesterov, working.data()};
  }
};

TEST(Sgd, twenty_steps_agree_with_the_reference_and_the_working_copy_is_the_rounded_parameter) {
  HostStream stream;
  const auto ops = cpu::make_elementwise_ops();
  const float clip = 0.5F;
  for (const bool momentum : {false, true}) {
    for (const bool nesterov : {false, true}) {
      for (const std::int64_t n : kSizes) {
        Sgd sgd(n, momentum, nesterov && momentum);
        for (int step = 0; step < 20; ++step) {
          const std::vector<float> g = random_floats(n, 100 + step);
          std::copy(g.begin(), g.end(), sgd.g.begin());
          for (std::int64_t i = 0; i < n; ++i) {
            const double gradient = 0.5 * static_cast<double>(g[i]);
            const double mu = momentum ? static_cast<double>(sgd.range.mu) : 0.0;
            sgd.b_expected[i] = mu * sgd.b_expected[i] + gradient;
            const double direction = sgd.range.nesterov ? gradient + mu * sgd.b_expected[i] : sgd.b_expected[i];
            const double lr = sgd.range.lr;
            sgd.p_expected[i] =
                sgd.p_expected[i] * (1.0 - lr * static_cast<double>(sgd.range.weight_decay)) - lr * direction;
          }
          ops->sgd(stream, std::span(&sgd.range, 1), {&clip, nullptr});
        }
        expect_close(to_doubles(sgd.p), sgd.p_expected, 2e-6, "parameter", 100);
        if (momentum) expect_close(to_doubles(sgd.b), sgd.b_expected, 2e-6, "momentum", 100);
        expect_rounded(sgd.working, sgd.p);
      }
    }
  }
}

TEST(Sgd, a_closed_gate_leaves_every_bit_as_it_was) {
  Sgd sgd(50, true, true);
  std::fill(sgd.g.begin(), sgd.g.end(), std::numeric_limits<float>::quiet_NaN());
  const std::int32_t apply = 0;
  HostStream stream;
  cpu::make_elementwise_ops()->sgd(stream, std::span(&sgd.range, 1), {nullptr, &apply});
  EXPECT_EQ(to_doubles(sgd.p), sgd.p_expected);
  EXPECT_EQ(to_doubles(sgd.b), sgd.b_expected);
  expect_untouched(sgd.working);
}

class SumOfSquares : public testing::Test {
 protected:
  SumOfSquares() {
    for (const std::int64_t n : {0, 1, 31, 32, 33, 65535, 65536, 65537, 200001}) {
      memory.push_back(random_floats(n, static_cast<std::uint64_t>(n), 1e-3));
    }
    for (const std::vector<float>& values : memory) ranges.emplace_back(values);
  }
  double sum(int threads) {
    const Threads scope(threads);
    HostStream stream;
    double result = 123.0;  // overwritten, not added to
    cpu::make_elementwise_ops()->sum_of_squares(stream, ranges, &result);
    return result;
  }
  std::vector<std::vector<float>> memory;
  std::vector<std::span<const float>> ranges;
};

TEST_F(SumOfSquares, agrees_with_the_reference_and_not_with_the_number_of_threads) {
  double expected = 0.0;
  for (const std::vector<float>& values : memory) expected += dot(to_doubles(values), to_doubles(values));
  EXPECT_NEAR(sum(1), expected, 1e-12 * expected);
  for (const int threads : {2, 3, 8}) EXPECT_EQ(sum(1), sum(threads)) << threads;
}

TEST_F(SumOfSquares, of_nothing_is_zero) {
  ranges.clear();
  EXPECT_EQ(sum(2), 0.0);
}

TEST_F(SumOfSquares, large_values_do_not_overflow_and_non_finite_ones_show) {
  memory[3][5] = 1e30F;
  EXPECT_NEAR(sum(2), 1e60, 1e54);
  memory[8][200000] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(sum(2), std::numeric_limits<double>::infinity());
  memory[5][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(sum(2)));
}

struct Decision {
  float norm, clip;
  std::int32_t apply;
};

Decision decide(double sum, double loss_sum, float max_norm, double loss_limit) {
  Decision d{-1.0F, -1.0F, -1};
  HostStream stream;
  cpu::make_elementwise_ops()->decide(stream, &sum, &loss_sum, 0.5, max_norm, loss_limit, &d.norm, &d.clip, &d.apply);
  return d;
}

TEST(Decide, clips_to_the_maximum_norm) {
  EXPECT_FLOAT_EQ(decide(16.0, 1.0, 1.0F, 1e9).norm, 4.0F);
  EXPECT_FLOAT_EQ(decide(16.0, 1.0, 1.0F, 1e9).clip, 1.0F / (4.0F + 1e-6F));
  EXPECT_EQ(decide(0.25, 1.0, 1.0F, 1e9).clip, 1.0F);
  EXPECT_EQ(decide(16.0, 1.0, 0.0F, 1e9).clip, 1.0F);  // no clipping
  EXPECT_EQ(decide(0.0, 1.0, 1.0F, 1e9).clip, 1.0F);
  EXPECT_EQ(decide(16.0, 1.0, 1.0F, 1e9).apply, 1);
}

TEST(Decide, refuses_what_is_not_finite_or_above_the_limit) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = NAN;
  EXPECT_EQ(decide(kNaN, 1.0, 1.0F, kInfinity).apply, 0);
  EXPECT_EQ(decide(kInfinity, 1.0, 1.0F, kInfinity).apply, 0);
  EXPECT_EQ(decide(1e90, 1.0, 1.0F, kInfinity).apply, 0);  // the norm is no fp32 number
  EXPECT_EQ(decide(1.0, kNaN, 1.0F, kInfinity).apply, 0);
  EXPECT_EQ(decide(1.0, kInfinity, 1.0F, kInfinity).apply, 0);
  EXPECT_EQ(decide(1.0, -kInfinity, 1.0F, kInfinity).apply, 0);
  EXPECT_EQ(decide(1.0, 10.0, 1.0F, 5.0).apply, 1);  // the loss is 10 * 0.5
  EXPECT_EQ(decide(1.0, 10.1, 1.0F, 5.0).apply, 0);
  EXPECT_EQ(decide(1.0, 10.0, 1.0F, kInfinity).apply, 1);
}

}  // namespace
}  // namespace polaron::test

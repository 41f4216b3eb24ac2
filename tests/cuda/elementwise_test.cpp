#include <cmath>
#include <limits>
#include <list>

#include "family.h"

namespace polaron::test {
namespace {

// Around the packs, the chunks of a block and, with their number, the ranges of a launch.
const std::int64_t kSizes[] = {1, 2, 15, 16, 17, 100, 4095, 4096, 4097, 9000, 0, 3};

// A range of memory that begins `offset` elements after a multiple of 256 bytes.
class Flat {
 public:
  Flat(const Machine& machine, const std::vector<float>& values, std::int64_t offset)
      : array_(machine, with_offset(values, offset)), offset_(offset) {}
  float* data() const { return array_.tensor().f32() + offset_; }
  Doubles values() const {
    Doubles all = array_.values();
    all.erase(all.begin(), all.begin() + offset_);
    return all;
  }

 private:
  static Matrix with_offset(const std::vector<float>& values, std::int64_t offset) {
    Matrix matrix(1, static_cast<std::int64_t>(values.size()) + offset);
    for (std::size_t i = 0; i < values.size(); ++i) matrix.at(0, static_cast<std::int64_t>(i) + offset) = values[i];
    return matrix;
  }
  Array array_;
  std::int64_t offset_;
};

struct Adam {
  std::vector<float> g;
  Flat p, gradient, m, v;
  Array working;
  Doubles p_expected, m_expected, v_expected;
  AdamWRange range{};

  Adam(const Machine& machine, std::int64_t n, std::uint64_t seed, std::int64_t offset)
      : g(random_floats(n, seed + 50, 0.3, 0.05)),
        p(machine, random_floats(n, seed), offset),
        gradient(machine, g, offset),
        m(machine, std::vector<float>(n), offset),
        v(machine, std::vector<float>(n), offset),
        working(machine, Matrix(1, n), DType::bf16),
        p_expected(to_doubles(random_floats(n, seed))),
        m_expected(n),
        v_expected(n) {
    range = {p.data(), gradient.data(),
             m.data(), v.data(),
             n,        3e-3F,
             0.9F,     n % 5 == 0 ? 0.999F : 0.95F,
             1e-8F,    n % 2 == 0 ? 0.0F : 0.1F,
             0,        n % 3 == 0 ? nullptr : working.tensor().bf16()};
  }

  // torch.optim.AdamW, as its documentation writes it.
  void expect_step(double clip) {
    const double b1 = range.beta1, b2 = range.beta2, lr = range.lr;
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double d = clip * static_cast<double>(g[i]);
      p_expected[i] *= 1.0 - lr * static_cast<double>(range.weight_decay);
      m_expected[i] = b1 * m_expected[i] + (1.0 - b1) * d;
      v_expected[i] = b2 * v_expected[i] + (1.0 - b2) * d * d;
      const double m_hat = m_expected[i] / (1.0 - std::pow(b1, range.step));
      const double v_hat = v_expected[i] / (1.0 - std::pow(b2, range.step));
      p_expected[i] -= lr * m_hat / (std::sqrt(v_hat) + static_cast<double>(range.eps));
    }
  }
};

class ElementwiseFamily : public Family {
 protected:
  std::list<Adam> adams() const {
    std::list<Adam> all;
    for (int copy = 0; copy < 3; ++copy) {  // more ranges than a launch takes
      for (const std::int64_t n : kSizes) all.emplace_back(machine, n, static_cast<std::uint64_t>(n), copy);
    }
    return all;
  }
  static std::vector<AdamWRange> ranges_of(std::list<Adam>& all, std::int64_t step) {
    std::vector<AdamWRange> ranges;
    for (Adam& adam : all) {
      adam.range.step = step;
      ranges.push_back(adam.range);
    }
    return ranges;
  }
  template <class T>
  DeviceScalar<T> scalar(const T& value) const {
    DeviceScalar<T> result(machine.device());
    result.set(machine.stream(), value);
    return result;
  }
};

TEST_P(ElementwiseFamily, adamw_agrees_with_the_reference_over_some_steps) {
  const auto clip = scalar(0.37F);
  const auto apply = scalar<std::int32_t>(1);
  std::list<Adam> all = adams();
  for (std::int64_t step = 1; step <= 4; ++step) {
    const bool clipped = step % 2 == 0;
    machine.ops().elementwise().adamw(machine.stream(), ranges_of(all, step),
                                      clipped ? StepGate{clip.device(), apply.device()} : StepGate{});
    for (Adam& adam : all) adam.expect_step(clipped ? static_cast<double>(0.37F) : 1.0);
  }
  for (const Adam& adam : all) {
    const Doubles p = adam.p.values();
    expect_close(p, adam.p_expected, 2e-6, "parameter", 100);
    expect_close(adam.m.values(), adam.m_expected, 2e-6, "m", 100);
    expect_close(adam.v.values(), adam.v_expected, 2e-6, "v", 100);
    const Doubles working = adam.working.values();
    for (std::size_t i = 0; i < p.size(); ++i) {
      const float rounded = to_float(to_bf16(static_cast<float>(p[i])));
      ASSERT_EQ(working[i], adam.range.working == nullptr ? 0.0 : static_cast<double>(rounded));
    }
  }
}

TEST_P(ElementwiseFamily, a_closed_gate_leaves_everything_as_it_was) {
  const auto clip = scalar(NAN);
  const auto apply = scalar<std::int32_t>(0);
  std::list<Adam> all = adams();
  machine.ops().elementwise().adamw(machine.stream(), ranges_of(all, 3), {clip.device(), apply.device()});
  for (const Adam& adam : all) {
    EXPECT_EQ(adam.p.values(), adam.p_expected);
    EXPECT_EQ(adam.m.values(), adam.m_expected);
    EXPECT_EQ(adam.v.values(), adam.v_expected);
    const SgdRange range{adam.range.parameter, adam.range.gradient, adam.range.m, adam.range.n, 0.1F, 0.9F, 0.1F, true};
    machine.ops().elementwise().sgd(machine.stream(), std::span(&range, 1), {nullptr, apply.device()});
    EXPECT_EQ(adam.p.values(), adam.p_expected);
  }
}

TEST_P(ElementwiseFamily, adamw_s_quirks_round_what_is_kept_to_bf16_and_change_nothing_else) {
  const auto rounded = [](Doubles values) {
    for (double& value : values) value = static_cast<double>(to_float(to_bf16(static_cast<float>(value))));
    return values;
  };
  for (const bool weights : {false, true}) {
    for (const bool moments : {false, true}) {
      Adam plain(machine, 4097, 3, 1), quirky(machine, 4097, 3, 1);
      plain.range.step = quirky.range.step = 1;
      quirky.range.bf16_parameter = weights;
      quirky.range.bf16_moments = moments;
      machine.ops().elementwise().adamw(machine.stream(), std::span(&plain.range, 1), {});
      machine.ops().elementwise().adamw(machine.stream(), std::span(&quirky.range, 1), {});
      EXPECT_EQ(quirky.p.values(), weights ? rounded(plain.p.values()) : plain.p.values());
      EXPECT_EQ(quirky.m.values(), moments ? rounded(plain.m.values()) : plain.m.values());
      EXPECT_EQ(quirky.v.values(), moments ? rounded(plain.v.values()) : plain.v.values());
      EXPECT_EQ(quirky.working.values(), plain.working.values());
    }
  }
}

TEST_P(ElementwiseFamily, sgd_agrees_with_the_reference_over_some_steps) {
  const auto clip = scalar(0.5F);
  for (const std::int64_t n : kSizes) {
    for (const int kind : {0, 1, 2}) {  // none, momentum, Nesterov
      const std::vector<float> start = random_floats(n, 3), g = random_floats(n, 4);
      const Flat p(machine, start, n % 2), b(machine, std::vector<float>(n), n % 2), gradient(machine, g, n % 2);
      const Array working(machine, Matrix(1, n), DType::bf16);
      const SgdRange range{p.data(), gradient.data(), kind == 0 ? nullptr : b.data(), n, 0.05F, 0.9F,
                           0.02F,    kind == 2,       working.tensor().bf16()};
      Doubles p_expected = to_doubles(start), b_expected(n);
      for (int step = 0; step < 3; ++step) {
        machine.ops().elementwise().sgd(machine.stream(), std::span(&range, 1), {clip.device(), nullptr});
        for (std::int64_t i = 0; i < n; ++i) {
          const double d = 0.5 * static_cast<double>(g[i]), mu = kind == 0 ? 0.0 : static_cast<double>(range.mu);
          b_expected[i] = mu * b_expected[i] + d;
          const double lr = range.lr, direction = kind == 2 ? d + mu * b_expected[i] : b_expected[i];
          p_expected[i] = p_expected[i] * (1.0 - lr * static_cast<double>(range.weight_decay)) - lr * direction;
        }
      }
      expect_close(p.values(), p_expected, 2e-6, "parameter", 100);
      if (kind > 0) expect_close(b.values(), b_expected, 2e-6, "momentum", 100);
      const Doubles rounded = working.values(), exact = p.values();
      for (std::int64_t i = 0; i < n; ++i)
        ASSERT_EQ(rounded[i], static_cast<double>(to_float(to_bf16(static_cast<float>(exact[i])))));
    }
  }
}

TEST_P(ElementwiseFamily, scaling_multiplies_every_value) {
  for (const std::int64_t n : kSizes) {
    for (const std::int64_t offset : {0, 1}) {
      const std::vector<float> values = random_floats(n, 10, 3.0);
      const Flat flat(machine, values, offset);
      machine.ops().elementwise().scale(machine.stream(), flat.data(), n, 0.25F);
      const Doubles scaled = flat.values();
      for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(scaled[i], 0.25 * static_cast<double>(values[i]));
    }
  }
}

TEST_P(ElementwiseFamily, rounding_goes_to_the_nearest_bf16_and_to_even) {
  for (const std::int64_t n : kSizes) {
    std::vector<float> values = random_floats(n, 9, 100.0);
    const float special[] = {1.00390625F, 1.01171875F, -0.0F, 3.4e38F, INFINITY, 1e-40F};  // two ties first
    for (std::int64_t i = 0; i < std::min<std::int64_t>(n, 6); ++i) values[i] = special[i];
    for (const std::int64_t offset : {0, 1}) {
      const Flat from(machine, values, offset);
      const Array to(machine, Matrix(1, n), DType::bf16);
      machine.ops().elementwise().round(machine.stream(), from.data(), to.tensor().bf16(), n);
      const Doubles result = to.values();
      for (std::int64_t i = 0; i < n; ++i)
        ASSERT_EQ(result[i], static_cast<double>(to_float(to_bf16(values[i])))) << values[i];
    }
  }
}

TEST_P(ElementwiseFamily, sum_of_squares_agrees_with_the_reference) {
  std::list<Flat> memory;
  std::vector<std::span<const float>> ranges;
  double expected = 0.0;
  const auto add = [&](std::vector<float> values, std::int64_t offset) {
    expected += dot(to_doubles(values), to_doubles(values));
    memory.emplace_back(machine, values, offset);
    ranges.emplace_back(memory.back().data(), values.size());
  };
  const auto sum = [&] {
    const auto result = scalar(123.0);  // overwritten, not added to
    machine.ops().elementwise().sum_of_squares(machine.stream(), ranges, result.device());
    return result.get(machine.stream());
  };
  EXPECT_EQ(sum(), 0.0);
  for (const std::int64_t n : {0, 1, 3, 31, 1023, 1025, 32767, 32768, 32769, 70001}) {
    for (const std::int64_t offset : {0, 1, 2, 4}) add(random_floats(n, static_cast<std::uint64_t>(n), 1e-3), offset);
  }
  EXPECT_NEAR(sum(), expected, 1e-12 * expected);
  add({1e30F, 1.0F}, 0);
  EXPECT_NEAR(sum(), 1e60, 1e54);
  add({std::numeric_limits<float>::infinity()}, 0);
  EXPECT_EQ(sum(), std::numeric_limits<double>::infinity());
  add({1.0F, 2.0F, NAN}, 0);
  EXPECT_TRUE(std::isnan(sum()));
}

TEST_P(ElementwiseFamily, decide_clips_and_refuses_what_is_not_finite_or_above_the_limit) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  struct Decision {
    float norm, clip;
    std::int32_t apply;
  };
  const auto decide = [&](double sum, double loss_sum, float max_norm, double loss_limit) {
    const auto squares = scalar(sum), loss = scalar(loss_sum);
    const auto result = scalar(Decision{-1.0F, -1.0F, -1});
    machine.ops().elementwise().decide(machine.stream(), squares.device(), loss.device(), 0.5, max_norm, loss_limit,
                                       &result.device()->norm, &result.device()->clip, &result.device()->apply);
    return result.get(machine.stream());
  };
  EXPECT_FLOAT_EQ(decide(16.0, 1.0, 1.0F, 1e9).norm, 4.0F);
  EXPECT_FLOAT_EQ(decide(16.0, 1.0, 1.0F, 1e9).clip, 1.0F / (4.0F + 1e-6F));
  EXPECT_EQ(decide(16.0, 1.0, 1.0F, 1e9).apply, 1);
  EXPECT_EQ(decide(0.25, 1.0, 1.0F, 1e9).clip, 1.0F);
  EXPECT_EQ(decide(16.0, 1.0, 0.0F, 1e9).clip, 1.0F);  // no clipping
  EXPECT_EQ(decide(0.0, 1.0, 1.0F, 1e9).clip, 1.0F);
  for (const double sum : {static_cast<double>(NAN), kInfinity, 1e90})
    EXPECT_EQ(decide(sum, 1.0, 1.0F, kInfinity).apply, 0);
  for (const double loss : {static_cast<double>(NAN), kInfinity, -kInfinity}) {
    EXPECT_EQ(decide(1.0, loss, 1.0F, kInfinity).apply, 0);
  }
  EXPECT_EQ(decide(1.0, 10.0, 1.0F, 5.0).apply, 1);  // the loss is 10 * 0.5
  EXPECT_EQ(decide(1.0, 10.1, 1.0F, 5.0).apply, 0);
}

INSTANTIATE_TEST_SUITE_P(Places, ElementwiseFamily, testing::ValuesIn(places()), name_of_place);

TEST(CudaElementwise, gives_the_same_bits_for_every_order_of_threads) {
  expect_same_bits_in_all_orders([&](const Machine& machine) {
    const Array values(machine, Matrix::random(1, 100001, 1)), sum(machine, Matrix(1, 2));
    const std::span<const float> range(values.tensor().f32(), 100001);
    machine.ops().elementwise().sum_of_squares(machine.stream(), std::span(&range, 1),
                                               static_cast<double*>(sum.tensor().data));
    return sum.bits();
  });
}

}  // namespace
}  // namespace polaron::test

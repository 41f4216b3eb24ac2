// What holds for every kind of optimizer.
#include "optim/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "optim/stepper.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::matrices_under;
using test::Stepper;

// Both models: with biases and learned positions, and with grouped queries, gates and a head.
std::vector<TransformerConfig> models() { return {test::tiny_gpt2(), test::tiny_llama()}; }

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  return test::distance(a, b) / test::norm_of(b);
}

class EveryOptimizer : public testing::TestWithParam<test::NamedSettings> {
 protected:
  OptimizerConfig config_ = matrices_under(GetParam().settings);
};

TEST_P(EveryOptimizer, moves_every_parameter_and_leaves_padding_zero) {
  for (const TransformerConfig& model : models()) {
    Stepper stepper(model, config_);
    const std::vector<float> before = stepper.weights();
    stepper.run(3);
    const std::vector<float> after = stepper.weights();
    EXPECT_EQ(test::nonzero_padding(stepper.table(), after), 0);
    test::for_each_element(stepper.table(), [&](const Parameter& p, const auto&, auto i, auto j, std::size_t at) {
      ASSERT_TRUE(std::isfinite(after[at])) << p.name;
      ASSERT_NE(after[at], before[at]) << p.name << " " << i << ", " << j;
    });
  }
}

TEST_P(EveryOptimizer, with_a_closed_gate_leaves_weights_and_state_as_they_are) {
  for (const TransformerConfig& model : models()) {
    Stepper stepper(model, config_);
    stepper.run(2);
    const std::vector<float> weights = stepper.weights();
    const std::vector<std::vector<float>> state = stepper.state();
    std::vector<float> gradients = test::random_weights(stepper.table(), 5);
    for (std::size_t i = 0; i < gradients.size(); i += 7) gradients[i] = std::numeric_limits<float>::quiet_NaN();
    stepper.set_gate(0.5F, false);
    stepper.step(2, gradients);
    EXPECT_EQ(stepper.weights(), weights);
    EXPECT_EQ(stepper.state(), state);
    // And the next step is the one that would have come without it.
    stepper.set_gate(1.0F, true);
    stepper.step(2, test::random_weights(stepper.table(), 6));
    Stepper straight(model, config_);
    straight.run(2);
    straight.step(2, test::random_weights(stepper.table(), 6));
    EXPECT_EQ(stepper.weights(), straight.weights());
    EXPECT_EQ(stepper.state(), straight.state());
  }
}

TEST_P(EveryOptimizer, gives_the_same_bits_twice) {
  for (const int threads : {1, 2}) {
    Stepper first(test::tiny_llama(), config_, 1, threads), second(test::tiny_llama(), config_, 1, threads);
    first.run(3);
    second.run(3);
    EXPECT_EQ(first.weights(), second.weights());
    EXPECT_EQ(first.state(), second.state());
  }
}

TEST_P(EveryOptimizer, gives_the_same_bits_however_its_matrices_are_grouped) {
  for (const TransformerConfig& model : models()) {
    Stepper expected(model, config_, 1, std::make_unique<test::GroupedBackend>(1, 1000));
    expected.run(3);
    for (const std::int64_t group : {1, 2, 3}) {
      Stepper grouped(model, config_, 1, std::make_unique<test::GroupedBackend>(1, group));
      grouped.run(3);
      EXPECT_EQ(grouped.weights(), expected.weights()) << "groups of " << group;
      EXPECT_EQ(grouped.state(), expected.state()) << "groups of " << group;
    }
  }
}

TEST_P(EveryOptimizer, clips_by_the_factor_on_the_device) {
  Stepper clipped(test::tiny_llama(), config_), scaled(test::tiny_llama(), config_);
  clipped.set_gate(0.25F, true);
  for (std::int64_t step = 0; step < 2; ++step) {
    std::vector<float> gradients = test::random_weights(clipped.table(), 50 + static_cast<std::uint64_t>(step));
    clipped.step(step, gradients);
    for (float& g : gradients) g *= 0.25F;  // exact
    scaled.step(step, gradients);
  }
  EXPECT_EQ(clipped.weights(), scaled.weights());
  EXPECT_EQ(clipped.state(), scaled.state());  // most directions do not depend on the gradient's size: their state does
}

TEST_P(EveryOptimizer, multiplies_every_rate_by_the_schedules_factor) {
  OptimizerConfig halved = config_;
  for (OptimizerSettings* group : {&halved.matrices, &halved.embeddings, &halved.head, &halved.vectors}) {
    group->lr *= 0.5;
  }
  Stepper by_factor(test::tiny_llama(), config_), by_rate(test::tiny_llama(), halved);
  const std::vector<float> gradients = test::random_weights(by_factor.table(), 50);
  by_factor.step(0, gradients, 0.5);
  by_rate.step(0, gradients);
  EXPECT_EQ(by_factor.weights(), by_rate.weights());
}

TEST_P(EveryOptimizer, with_zero_gradients_only_decays) {
  Stepper stepper(test::tiny_llama(), config_);
  std::vector<float> expected = stepper.weights();
  const ParameterTable& table = stepper.table();
  for (std::int64_t step = 0; step < 2; ++step) {
    stepper.step(step, std::vector<float>(expected.size()));
    for (const Parameter& p : table.all()) {
      const OptimizerSettings& s = p.role == Role::matrix      ? config_.matrices
                                   : p.role == Role::embedding ? config_.embeddings
                                   : p.role == Role::head      ? config_.head
                                                               : config_.vectors;
      const float keep = 1.0F - static_cast<float>(s.lr) * static_cast<float>(s.weight_decay);
      for (std::int64_t i = 0; i < p.stored_elements(); ++i) expected[static_cast<std::size_t>(p.offset + i)] *= keep;
    }
  }
  EXPECT_LT(relative_distance(stepper.weights(), expected), 1e-7);
}

TEST_P(EveryOptimizer, plans_the_memory_that_it_takes) {
  Stepper stepper(test::tiny_llama(), config_);
  const Optimizer::Plan plan = Optimizer::plan(stepper.optimizer().assignment(), stepper.optimizer().ownership(), 0,
                                               stepper.table(), stepper.backend());
  ASSERT_EQ(plan.state.pieces().size(), stepper.optimizer().state().size());
  std::map<std::string, int> names;
  for (std::size_t i = 0; i < plan.state.pieces().size(); ++i) {
    const ArenaPlan::Piece& piece = plan.state.pieces()[i];
    const StateTensor& tensor = stepper.optimizer().state()[i];
    EXPECT_EQ(piece.name, tensor.name);
    EXPECT_EQ(piece.rows, tensor.rows);
    EXPECT_EQ(piece.cols, tensor.cols);
    EXPECT_EQ(names[tensor.name]++, 0) << tensor.name << " occurs twice";
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizer, EveryOptimizer, testing::ValuesIn(test::all_settings()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace polaron

// Logits, loss and gradients of whole models, feature by feature, against the double-precision reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "model/features.h"
#include "model/reference_transformer.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::Feature;
using test::HostBatch;
using test::TinyModel;

class EveryFeature : public testing::TestWithParam<Feature> {
 protected:
  EveryFeature()
      : feature_(GetParam()),
        model_(feature_.config, test::shape_for(feature_.batch.sequences, feature_.batch.length)),
        weights_(test::random_weights(model_.table(), 11)),
        exact_(weights_.begin(), weights_.end()) {
    model_.set_weights(weights_);
  }
  double mean(double loss_sum) const { return loss_sum / static_cast<double>(feature_.batch.targets_counted()); }

  const Feature& feature_;
  TinyModel model_;
  std::vector<float> weights_;
  std::vector<double> exact_;
};

TEST_P(EveryFeature, logits_and_loss_are_those_of_the_reference) {
  const std::vector<double> expected = test::reference_logits(feature_.config, model_.table(), exact_, feature_.batch);
  const std::vector<float> logits = model_.logits(feature_.batch);
  const auto entries = static_cast<std::size_t>(feature_.config.softmax_size());
  const auto tokens = static_cast<std::size_t>(feature_.config.vocabulary);  // those beyond are no tokens to sample
  ASSERT_EQ(logits.size() / tokens, expected.size() / entries);
  double worst = 0.0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double wanted = expected[i / tokens * entries + i % tokens];
    worst = test::worse(worst, std::abs(static_cast<double>(logits[i]) - wanted));
  }
  EXPECT_LT(worst, 1e-5);
  const double loss = test::reference_loss_sum(feature_.config, model_.table(), exact_, feature_.batch);
  EXPECT_NEAR(mean(model_.loss_sum(feature_.batch)), mean(loss), 1e-6);
  EXPECT_NEAR(mean(model_.train(feature_.batch, 1.0)), mean(loss), 1e-6);
}

// Indices of a block's elements in a flat buffer.
std::vector<std::size_t> places_of(const Parameter& p, const MatrixBlock& block) {
  std::vector<std::size_t> places;
  for (std::int64_t i = 0; i < block.rows; ++i) {
    for (std::int64_t j = 0; j < p.cols; ++j) {
      places.push_back(static_cast<std::size_t>(p.offset + (block.row + i) * p.stored_cols + j));
    }
  }
  return places;
}

// Each block of each parameter along one direction: half a random one, half its gradient. The first sees errors of any
// kind, the second wrong magnitudes most clearly.
TEST_P(EveryFeature, gradients_are_the_differences_of_the_reference) {
  model_.train(feature_.batch, mean(1.0));
  const std::vector<float> gradients = model_.gradients();
  const double global = test::norm_of(gradients);
  const ParameterTable& table = model_.table();
  std::mt19937_64 engine(5);
  std::normal_distribution<double> normal;

  for (const Parameter& p : table.all()) {
    for (const MatrixBlock& block : p.blocks) {
      const std::vector<std::size_t> places = places_of(p, block);
      std::vector<double> random;
      double random_square = 0.0, square = 0.0;
      for (const std::size_t at : places) {
        random.push_back(normal(engine));
        random_square += random.back() * random.back();
        square += static_cast<double>(gradients[at]) * static_cast<double>(gradients[at]);
      }
      const double size = std::sqrt(square);
      std::vector<double> direction;
      double claimed = 0.0;
      for (std::size_t i = 0; i < places.size(); ++i) {
        const double gradient = gradients[places[i]];
        direction.push_back(random[i] / std::sqrt(random_square) + (size > 0.0 ? gradient / size : 0.0));
        claimed += direction.back() * gradient;
      }
      constexpr double kStep = 1e-4;
      const auto loss_at = [&](double distance) {
        std::vector<double> moved = exact_;
        for (std::size_t i = 0; i < places.size(); ++i) moved[places[i]] += distance * direction[i];
        return mean(test::reference_loss_sum(feature_.config, table, moved, feature_.batch));
      };
      const double difference = (loss_at(kStep) - loss_at(-kStep)) / (2.0 * kStep);
      EXPECT_NEAR(claimed, difference, 1e-5 * size + 1e-6 * global) << p.name << " " << block.name;
    }
  }
}

TEST_P(EveryFeature, padding_gets_zero_gradients) {
  // Whatever was in the buffer before: the first micro-batch overwrites it, padding included.
  std::vector<float> before(weights_.size());
  for (const Parameter& p : model_.table().all()) std::fill_n(before.begin() + p.offset, p.stored_elements(), 7.0F);
  model_.set_gradients(before);
  model_.train(feature_.batch, mean(1.0));
  const std::vector<float> gradients = model_.gradients();
  EXPECT_EQ(test::nonzero_padding(model_.table(), gradients), 0);
}

INSTANTIATE_TEST_SUITE_P(Transformer, EveryFeature, testing::ValuesIn(test::all_features()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace polaron

// What must not depend on how the work is cut: recomputation, chunks of the head, micro-batches, threads, packing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model/features.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

using test::Feature;
using test::HostBatch;
using test::TinyModel;

struct Outcome {
  double loss_sum = 0;
  std::vector<float> gradients;
};

Outcome train_once(const TransformerConfig& config, const ActivationShape& shape, const HostBatch& batch,
                   int threads = 1) {
  TinyModel model(config, shape, threads);
  model.set_weights(test::random_weights(model.table(), 3));
  Outcome outcome;
  outcome.loss_sum = model.train(batch, 1.0 / static_cast<double>(batch.targets_counted()));
  outcome.gradients = model.gradients();
  return outcome;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(Transformer, recomputed_blocks_give_the_same_bits) {
  for (const Feature& feature : test::all_features()) {
    ActivationShape shape = test::shape_for(feature.batch.sequences, feature.batch.length);
    const Outcome kept = train_once(feature.config, shape, feature.batch);
    shape.recompute_blocks = true;
    const Outcome recomputed = train_once(feature.config, shape, feature.batch);
    EXPECT_EQ(kept.loss_sum, recomputed.loss_sum) << feature.name;
    EXPECT_TRUE(same_bits(kept.gradients, recomputed.gradients)) << feature.name;
  }
}

TEST(Transformer, the_same_step_twice_gives_the_same_bits_on_two_threads) {
  for (const TransformerConfig& config : {test::tiny_gpt2(), test::tiny_llama()}) {
    const HostBatch batch = test::random_batch(4, 16, config.vocabulary, 2);
    const Outcome first = train_once(config, test::shape_for(4, 16), batch, 2);
    const Outcome second = train_once(config, test::shape_for(4, 16), batch, 2);
    EXPECT_EQ(first.loss_sum, second.loss_sum);
    EXPECT_TRUE(same_bits(first.gradients, second.gradients));
  }
}

TEST(Transformer, one_thread_and_two_agree_up_to_summation_order) {
  for (const TransformerConfig& config : {test::tiny_gpt2(), test::tiny_llama()}) {
    const HostBatch batch = test::random_batch(4, 16, config.vocabulary, 2);
    const Outcome one = train_once(config, test::shape_for(4, 16), batch, 1);
    const Outcome two = train_once(config, test::shape_for(4, 16), batch, 2);
    EXPECT_NEAR(one.loss_sum, two.loss_sum, 1e-6 * one.loss_sum);
    EXPECT_LT(test::worst_difference(ParameterTable(config), two.gradients, one.gradients), 1e-5);
  }
}

TEST(Transformer, the_head_in_small_chunks_gives_the_same_gradients) {
  for (const TransformerConfig& config : {test::tiny_gpt2(), test::tiny_llama()}) {
    const HostBatch batch = test::random_batch(3, 16, config.vocabulary, 4);
    ActivationShape shape = test::shape_for(3, 16);
    const Outcome whole = train_once(config, shape, batch);
    for (const std::int64_t chunk : {1, 7, 16, 47, 48, 1000}) {
      shape.loss_chunk = chunk;
      const Outcome chunked = train_once(config, shape, batch);
      EXPECT_NEAR(chunked.loss_sum, whole.loss_sum, 1e-7 * whole.loss_sum) << chunk;
      EXPECT_LT(test::worst_difference(ParameterTable(config), chunked.gradients, whole.gradients), 1e-5) << chunk;
    }
  }
}

TEST(Transformer, micro_batches_add_up_to_the_whole_batch) {
  for (const Feature& feature : test::all_features()) {
    const HostBatch& batch = feature.batch;
    const Outcome whole = train_once(feature.config, test::shape_for(batch.sequences, batch.length), batch);
    TinyModel model(feature.config, test::shape_for(1, batch.length));
    model.set_weights(test::random_weights(model.table(), 3));
    double loss_sum = 0.0;
    for (std::int64_t i = 0; i < batch.sequences; ++i) {
      loss_sum += model.train(batch.part(i, 1), 1.0 / static_cast<double>(batch.targets_counted()), i > 0);
    }
    EXPECT_NEAR(loss_sum, whole.loss_sum, 1e-6 * whole.loss_sum) << feature.name;
    EXPECT_LT(test::worst_difference(model.table(), model.gradients(), whole.gradients), 1e-5) << feature.name;
  }
}

TEST(Transformer, a_batch_smaller_than_planned_gives_what_it_gives_alone) {
  for (const TransformerConfig& config : {test::tiny_gpt2(), test::tiny_llama()}) {
    const HostBatch batch = test::random_batch(2, 9, config.vocabulary, 6);
    const Outcome exact = train_once(config, test::shape_for(2, 9), batch);
    for (const bool recompute : {false, true}) {
      ActivationShape larger = test::shape_for(5, 16);
      larger.recompute_blocks = recompute;
      TinyModel model(config, larger);
      model.set_weights(test::random_weights(model.table(), 3));
      model.train(test::random_batch(5, 16, config.vocabulary, 7), 1.0);  // leaves its traces in every activation
      const double loss_sum = model.train(batch, 1.0 / static_cast<double>(batch.targets_counted()));
      EXPECT_NEAR(loss_sum, exact.loss_sum, 1e-7 * exact.loss_sum);
      EXPECT_LT(test::worst_difference(model.table(), model.gradients(), exact.gradients), 1e-6);
    }
  }
}

TEST(Transformer, refuses_a_batch_larger_than_planned) {
  TinyModel model(test::tiny_llama(), test::shape_for(2, 8));
  EXPECT_THROW(model.loss_sum(test::random_batch(3, 8, 61, 1)), std::logic_error);
  EXPECT_THROW(model.loss_sum(test::random_batch(1, 16, 61, 1)), std::logic_error);  // as many rows, but too long
}

TEST(Transformer, refuses_sequences_longer_than_its_position_table) {
  EXPECT_NO_THROW(TinyModel(test::tiny_gpt2(), test::shape_for(1, 16)));
  EXPECT_THROW(TinyModel(test::tiny_gpt2(), test::shape_for(1, 17)), std::logic_error);
  EXPECT_NO_THROW(TinyModel(test::tiny_llama(), test::shape_for(1, 17)));  // rotary positions have no table to leave
}

TEST(Transformer, evaluation_without_saved_activations_gives_the_same_loss) {
  for (const Feature& feature : test::all_features()) {
    ActivationShape shape = test::shape_for(feature.batch.sequences, feature.batch.length);
    const Outcome trained = train_once(feature.config, shape, feature.batch);
    shape.backward = false;
    TinyModel model(feature.config, shape);
    model.set_weights(test::random_weights(model.table(), 3));
    EXPECT_EQ(model.loss_sum(feature.batch), trained.loss_sum) << feature.name;
    EXPECT_EQ(model.loss_sum(feature.batch), trained.loss_sum) << feature.name << ", again";
  }
}

TEST(Transformer, a_loss_adds_to_what_the_sum_holds) {
  TinyModel model(test::tiny_gpt2(), test::shape_for(2, 8));
  model.set_weights(test::random_weights(model.table(), 3));
  const HostBatch batch = test::random_batch(2, 8, 61, 1);
  const double first = model.loss_sum(batch.part(0, 1));
  const double second = model.loss_sum(batch.part(1, 1));
  EXPECT_NEAR(model.loss_sum(batch), first + second, 1e-6 * (first + second));
}

// With rotary positions attention depends on distances only, so a document's loss is the same wherever it stands.
TEST(Transformer, packed_documents_have_the_losses_they_have_alone) {
  TransformerConfig config = test::tiny_llama();
  config.document_mask = true;
  constexpr std::int64_t kLength = 16;
  const std::vector<std::int64_t> lengths = {5, 1, 7, 3};
  HostBatch packed = test::random_batch(1, kLength, config.vocabulary, 8);
  packed.document_start = test::packed_documents(1, kLength, lengths);

  TinyModel model(config, test::shape_for(1, kLength));
  model.set_weights(test::random_weights(model.table(), 3));
  const double together = model.loss_sum(packed);
  double alone = 0.0;
  std::int64_t first = 0;
  for (const std::int64_t length : lengths) {
    const auto cut = [&](const std::vector<std::int32_t>& from) {
      return std::vector<std::int32_t>(from.begin() + first, from.begin() + first + length);
    };
    alone += model.loss_sum({1, length, cut(packed.tokens), cut(packed.targets), {}});
    first += length;
  }
  EXPECT_NEAR(together, alone, 1e-5);
  packed.document_start.clear();
  EXPECT_GT(std::abs(model.loss_sum(packed) - alone), 1e-2);  // the mask does something
}

TEST(Transformer, a_later_token_never_changes_an_earlier_row) {
  for (const TransformerConfig& config : {test::tiny_gpt2(), test::tiny_llama()}) {
    TinyModel model(config, test::shape_for(1, 12));
    model.set_weights(test::random_weights(model.table(), 3));
    HostBatch batch = test::random_batch(1, 12, config.vocabulary, 9);
    const std::vector<float> before = model.logits(batch);
    batch.tokens[8] = (batch.tokens[8] + 1) % static_cast<std::int32_t>(config.vocabulary);
    const std::vector<float> after = model.logits(batch);
    const auto split = static_cast<std::ptrdiff_t>(8 * config.vocabulary);
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + split, after.begin()));
    EXPECT_FALSE(std::equal(before.begin() + split, before.end(), after.begin() + split));
  }
}

TEST(Transformer, a_layer_is_reported_when_its_gradients_are_complete) {
  const TransformerConfig config = test::tiny_llama();
  const HostBatch batch = test::random_batch(2, 8, config.vocabulary, 4);
  TinyModel model(config, test::shape_for(2, 8));
  model.set_weights(test::random_weights(model.table(), 3));
  model.train(batch, 1.0);
  const std::vector<float> complete = model.gradients();

  model.set_gradients(std::vector<float>(complete.size(), -1.0F));
  DeviceBuffer tokens(model.backend().device(), 16 * sizeof(std::int32_t));
  DeviceBuffer targets(model.backend().device(), 16 * sizeof(std::int32_t));
  model.backend().device().upload(model.stream(), tokens.data(), batch.tokens.data(), tokens.bytes());
  model.backend().device().upload(model.stream(), targets.data(), batch.targets.data(), targets.bytes());
  const DeviceBatch view{2, 8, Tensor(tokens.data(), DType::i32, 16, 1), Tensor(targets.data(), DType::i32, 16, 1), {}};
  DeviceScalar<double> sum(model.backend().device());
  std::vector<int> order;
  model.transformer().forward_backward(model.stream(), view, 1.0F, false, sum.device(), [&](int layer) {
    order.push_back(layer);
    model.stream().synchronize();
    const std::vector<float> now = model.gradients();
    for (const Parameter& p : model.table().all()) {
      if (p.layer != layer) continue;
      EXPECT_TRUE(
          std::equal(now.begin() + p.offset, now.begin() + p.offset + p.stored_elements(), complete.begin() + p.offset))
          << p.name;
    }
  });
  EXPECT_EQ(order, (std::vector<int>{2, 1, 0, -1}));
}

}  // namespace
}  // namespace polaron

#include "model/activations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "model/features.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

std::int64_t planned_bytes(const TransformerConfig& config, const ActivationShape& shape) {
  return ActivationLayout(config, shape).plan().bytes();
}

TransformerConfig deep() {
  TransformerConfig config = test::tiny_gpt2();
  config.layers = 12;
  return config;
}

TEST(ActivationLayout, recomputation_needs_less_and_evaluation_least) {
  ActivationShape shape = test::shape_for(4, 16);
  const std::int64_t kept = planned_bytes(deep(), shape);
  shape.recompute_blocks = true;
  const std::int64_t recomputed = planned_bytes(deep(), shape);
  shape.backward = false;
  const std::int64_t evaluation = planned_bytes(deep(), shape);
  EXPECT_LT(recomputed, kept / 4);
  EXPECT_LT(evaluation, recomputed);
}

TEST(ActivationLayout, recomputation_grows_by_one_residual_a_block) {
  ActivationShape shape = test::shape_for(4, 16);
  shape.recompute_blocks = true;
  TransformerConfig config = deep();
  const std::int64_t before = planned_bytes(config, shape);
  config.layers += 1;
  EXPECT_EQ(planned_bytes(config, shape) - before, 4 * 16 * config.width * 4);
}

TEST(ActivationLayout, nothing_of_a_block_is_as_large_as_sequence_times_sequence) {
  const TransformerConfig config = deep();
  const std::int64_t length = 4096;
  const ActivationLayout layout(config, test::shape_for(1, length));
  for (const ArenaPlan::Piece& piece : layout.plan().pieces()) {
    EXPECT_LT(piece.rows * piece.cols, length * 256) << piece.name;
  }
}

TEST(ActivationLayout, placed_tensors_do_not_overlap_and_lie_inside_the_arena) {
  const auto backend = make_cpu_backend(1);
  for (const test::Feature& feature : test::all_features()) {
    const ActivationLayout layout(feature.config, test::shape_for(2, 8));
    const Arena arena(backend->device(), layout.plan());
    const Activations placed = layout.place(arena);
    std::vector<Tensor> tensors = {placed.residual,   placed.normed, placed.mean,       placed.rstd,     placed.delta,
                                   placed.d_residual, placed.d_qkv,  placed.d_attended, placed.d_hidden, placed.logits};
    tensors.insert(tensors.end(),
                   {placed.embedded, placed.embedded_mean, placed.embedded_rstd, placed.x0, placed.d_x0});
    for (const auto* list : {&placed.values, &placed.d_values, &placed.d_skips}) {
      tensors.insert(tensors.end(), list->begin(), list->end());
    }
    for (const BlockActivations& b : placed.blocks) {
      tensors.insert(tensors.end(), {b.residual1, b.normed1, b.mean1, b.rstd1, b.qkv, b.head_rstd, b.lse, b.attended,
                                     b.residual2, b.normed2, b.mean2, b.rstd2, b.pre, b.activated, b.skipped, b.value});
      if (b.entry.data != b.residual1.data && b.entry.data != placed.x0.data) tensors.push_back(b.entry);
    }
    std::erase_if(tensors, [](const Tensor& tensor) { return !tensor; });
    EXPECT_EQ(tensors.size(), layout.plan().pieces().size()) << feature.name;
    std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) { return a.data < b.data; });
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      bytes += tensors[i].elements() * 4;
      if (i == 0) continue;
      EXPECT_LE(tensors[i - 1].f32() + tensors[i - 1].elements(), tensors[i].f32());
    }
    EXPECT_LE(bytes, layout.plan().bytes());
  }
}

TEST(ActivationLayout, chunks_of_logits_are_as_asked_or_equal_and_up_to_128_megabytes) {
  TransformerConfig config = deep();
  ActivationShape shape = test::shape_for(64, 1024);
  shape.loss_chunk = 100;
  EXPECT_EQ(loss_chunk_rows(config, shape), 100);
  shape.loss_chunk = 1000000;
  EXPECT_EQ(loss_chunk_rows(config, shape), 64 * 1024);
  shape.loss_chunk = 0;
  config.vocabulary = 50257;
  const std::int64_t rows = loss_chunk_rows(config, shape);
  EXPECT_NEAR(static_cast<double>(rows * padded(config.vocabulary) * 4), 130e6, 8e6);
  const std::int64_t chunks = (64 * 1024 + rows - 1) / rows;
  EXPECT_LT(chunks * rows - 64 * 1024, chunks);  // no chunk is shorter than the others by more than the rounding
  EXPECT_EQ(loss_chunk_rows(config, test::shape_for(1, 8)), 8);
}

}  // namespace
}  // namespace polaron

// A model that computes in bf16 against the same model in fp32: as close as bf16's rounding lets it be.
#include <gtest/gtest.h>

#include <cmath>

#include "model/features.h"

namespace polaron {
namespace {

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

class InBf16 : public testing::TestWithParam<TransformerConfig> {
 protected:
  ActivationShape shape(DType dtype) const {
    ActivationShape shape = test::shape_for(3, 16);
    shape.dtype = dtype;
    return shape;
  }
  const test::HostBatch batch_ = test::random_batch(3, 16, 61, 5);
};

TEST_P(InBf16, loss_and_gradients_are_those_of_fp32_within_its_rounding) {
  test::TinyModel exact(GetParam(), shape(DType::f32));
  test::TinyModel rounded(GetParam(), shape(DType::bf16));
  // Both start from weights that bf16 can hold, so that only the computation differs.
  std::vector<float> weights = test::random_weights(exact.table(), 3);
  for (float& w : weights) w = to_float(to_bf16(w));
  exact.set_weights(weights);
  rounded.set_weights(weights);
  const double scale = 1.0 / static_cast<double>(batch_.rows());
  const double loss = exact.train(batch_, scale) * scale;
  EXPECT_NEAR(rounded.train(batch_, scale) * scale, loss, 1e-3 * loss);
  EXPECT_NEAR(rounded.loss_sum(batch_) * scale, loss, 1e-3 * loss);
  // A chain of some ten roundings of 2^-9 each a layer, whose errors add up as their number's root.
  const double allowed = 0.03 * std::sqrt(static_cast<double>(GetParam().layers) / 2.0);
  EXPECT_LT(test::worst_difference(exact.table(), rounded.gradients(), exact.gradients()), allowed);
  EXPECT_GT(relative_distance(rounded.gradients(), exact.gradients()), 1e-4) << "it did not compute in bf16";
  EXPECT_LT(relative_distance(rounded.logits(batch_), exact.logits(batch_)), allowed);
  EXPECT_EQ(test::nonzero_padding(rounded.table(), rounded.gradients()), 0);
}

TEST_P(InBf16, recomputation_changes_nothing) {
  ActivationShape recomputed = shape(DType::bf16);
  recomputed.recompute_blocks = true;
  test::TinyModel kept(GetParam(), shape(DType::bf16));
  test::TinyModel again(GetParam(), recomputed);
  const std::vector<float> weights = test::random_weights(kept.table(), 4);
  kept.set_weights(weights);
  again.set_weights(weights);
  EXPECT_EQ(kept.train(batch_, 0.02), again.train(batch_, 0.02));
  EXPECT_EQ(kept.gradients(), again.gradients());
}

TEST_P(InBf16, activations_take_half_the_memory) {
  const auto bytes = [&](DType dtype) { return ActivationLayout(GetParam(), shape(dtype)).plan().bytes(); };
  EXPECT_LT(static_cast<double>(bytes(DType::bf16)), 0.6 * static_cast<double>(bytes(DType::f32)));
}

INSTANTIATE_TEST_SUITE_P(Models, InBf16,
                         testing::Values(test::tiny_gpt2(), test::tiny_llama(), test::tiny_modded_gpt2()),
                         [](const auto& chosen) {
                           if (chosen.param.x0_mixing) return std::string("modded_gpt2");
                           return std::string(chosen.param.preset == ModelPreset::llama ? "llama" : "gpt2");
                         });

}  // namespace
}  // namespace polaron

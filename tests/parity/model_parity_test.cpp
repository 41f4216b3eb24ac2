// Logits, loss and every gradient of small models as PyTorch computes them (in float64): GPT-2 and LLaMA by
// transformers, the modded models by modded_torch.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "parity/fixture.h"
#include "train/device_batch.h"

namespace polaron {
namespace {

using test::HostBatch;
using test::TinyModel;

class ModelParity : public testing::TestWithParam<const char*> {
 protected:
  ModelParity()
      : folder_(test::fixtures() / GetParam()),
        checkpoint_(folder_),
        expected_(folder_ / "expected.safetensors"),
        batch_(test::with_windows(test::read_batch(expected_), checkpoint_.model(), first_window())) {}

  ActivationShape shape() const { return test::shape_for(batch_.sequences, batch_.length); }
  std::int64_t first_window() const {  // in blocks, where the model has windows
    return expected_.find("windows") == nullptr ? 0 : test::read_integers(expected_, "windows").at(0);
  }
  double expected_loss() const { return test::read_floats(expected_, "loss").at(0); }

  // Forward and backward in micro-batches of that many sequences; the mean loss.
  double train(TinyModel& model, std::int64_t sequences) const {
    test::load(model, checkpoint_);
    const double targets = static_cast<double>(batch_.rows());
    double sum = 0.0;
    for (std::int64_t first = 0; first < batch_.sequences; first += sequences) {
      const std::int64_t count = std::min(sequences, batch_.sequences - first);
      sum += model.train(batch_.part(first, count), 1.0 / targets, first > 0);
    }
    return sum / targets;
  }

  // Norm of the whole expected gradient.
  double gradient_norm() const {
    double sum = 0.0;
    for (const std::string& name : expected_.names()) {
      if (!name.starts_with("grad.")) continue;
      const double norm = test::norm_of(test::read_floats(expected_, name));
      sum += norm * norm;
    }
    return std::sqrt(sum);
  }

  // 1e-4 of the tensor's norm, or 1e-7 of the whole gradient's where that is more: the key bias's gradient is zero in
  // exact arithmetic.
  void expect_gradients(const TinyModel& model) const {
    std::set<std::string> left;
    for (const std::string& name : expected_.names()) {
      if (name.starts_with("grad.")) left.insert(name);
    }
    const double global = gradient_norm();
    const std::vector<float> gradients = model.gradients();
    for (const ExportedTensor& tensor : exported_tensors(checkpoint_.model(), model.table())) {
      const std::string name = "grad." + tensor.name;
      ASSERT_EQ(left.erase(name), 1U) << name;
      EXPECT_EQ(tensor.shape(), expected_.at(name).shape) << name;
      const std::vector<float> expected = test::read_floats(expected_, name);
      const std::vector<float> actual = test::exported_values(model.table(), tensor, gradients);
      EXPECT_LE(test::distance(actual, expected), std::max(1e-4 * test::norm_of(expected), 1e-7 * global)) << name;
    }
    EXPECT_TRUE(left.empty()) << "no gradient for " << *left.begin();
    EXPECT_EQ(test::nonzero_padding(model.table(), gradients), 0);
  }

  std::filesystem::path folder_;
  CheckpointReader checkpoint_;
  SafetensorsReader expected_;
  HostBatch batch_;
};

TEST_P(ModelParity, logits_are_those_of_pytorch) {
  ActivationShape evaluation = shape();
  evaluation.backward = false;
  TinyModel model(checkpoint_.model(), evaluation);
  test::load(model, checkpoint_);
  const std::vector<float> expected = test::read_floats(expected_, "logits");
  const std::vector<float> logits = model.logits(batch_);
  ASSERT_EQ(logits.size(), expected.size());
  double worst = 0.0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    worst = test::worse(worst, std::abs(static_cast<double>(logits[i]) - static_cast<double>(expected[i])));
  }
  EXPECT_LE(worst, 1e-5);
  EXPECT_NEAR(model.loss_sum(batch_) / static_cast<double>(batch_.rows()), expected_loss(), 1e-6);
}

TEST_P(ModelParity, loss_and_gradients_are_those_of_pytorch) {
  TinyModel model(checkpoint_.model(), shape());
  EXPECT_NEAR(train(model, batch_.sequences), expected_loss(), 1e-6);
  expect_gradients(model);
}

TEST_P(ModelParity, gradients_are_the_same_with_recomputed_blocks) {
  ActivationShape recompute = shape();
  recompute.recompute_blocks = true;
  TinyModel model(checkpoint_.model(), recompute);
  EXPECT_NEAR(train(model, batch_.sequences), expected_loss(), 1e-6);
  expect_gradients(model);
}

TEST_P(ModelParity, gradients_are_the_same_with_the_head_in_chunks) {
  ActivationShape chunked = shape();
  chunked.loss_chunk = 11;
  TinyModel model(checkpoint_.model(), chunked);
  EXPECT_NEAR(train(model, batch_.sequences), expected_loss(), 1e-6);
  expect_gradients(model);
}

TEST_P(ModelParity, gradients_are_the_same_in_two_micro_batches) {
  TinyModel model(checkpoint_.model(), shape());
  EXPECT_NEAR(train(model, (batch_.sequences + 1) / 2), expected_loss(), 1e-6);
  expect_gradients(model);
}

TEST_P(ModelParity, gradients_are_the_same_on_two_threads) {
  TinyModel model(checkpoint_.model(), shape(), 2);
  EXPECT_NEAR(train(model, batch_.sequences), expected_loss(), 1e-6);
  expect_gradients(model);
}

std::string name_of_model(const testing::TestParamInfo<const char*>& chosen) { return chosen.param; }

INSTANTIATE_TEST_SUITE_P(Fixtures, ModelParity, testing::ValuesIn(test::kFixtureModels), name_of_model);
INSTANTIATE_TEST_SUITE_P(Modded, ModelParity, testing::ValuesIn(test::kModdedModels), name_of_model);

class ModdedParity : public ModelParity {};

// By the code that a run takes its windows from.
TEST_P(ModdedParity, losses_are_those_of_pytorch_while_windows_grow) {
  const std::vector<float> progress = test::read_floats(expected_, "progress");
  const std::vector<std::int32_t> windows = test::read_integers(expected_, "windows");
  const std::vector<float> losses = test::read_floats(expected_, "losses");
  ASSERT_EQ(windows.size(), progress.size());
  ASSERT_EQ(losses.size(), progress.size());
  TinyModel model(checkpoint_.model(), shape());
  test::load(model, checkpoint_);
  BatchUploader uploader(model.backend().device(), checkpoint_.model(), batch_.rows());
  DeviceScalar<double> sum(model.backend().device());
  for (std::size_t i = 0; i < losses.size(); ++i) {
    EXPECT_EQ(window_blocks(checkpoint_.model(), progress[i]), windows[i]) << "at " << progress[i];
    uploader.set_progress(progress[i]);
    const DeviceBatch batch = uploader.upload(model.stream(), test::read_batch(expected_));
    sum.zero(model.stream());
    model.transformer().forward_loss(model.stream(), batch, sum.device());
    EXPECT_NEAR(sum.get(model.stream()) / static_cast<double>(batch_.rows()), losses[i], 1e-6) << windows[i];
  }
}

// One by one, since a small one hardly changes their norm; those that the model does not use get exactly none.
TEST_P(ModdedParity, gradient_of_each_scalar_is_that_of_pytorch) {
  TinyModel model(checkpoint_.model(), shape());
  train(model, batch_.sequences);
  const Parameter& scalars = model.table()[model.table().index("scalars")];
  const std::vector<float> expected = test::read_floats(expected_, "grad.scalars");
  const std::vector<float> gradients = model.gradients();
  ASSERT_EQ(scalars.elements(), static_cast<std::int64_t>(expected.size()));
  const double floor = 1e-7 * gradient_norm();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const float actual = gradients[static_cast<std::size_t>(scalars.offset) + i];
    const double size = std::abs(static_cast<double>(expected[i]));
    EXPECT_NEAR(actual, expected[i], size == 0.0 ? 0.0 : std::max(1e-4 * size, floor)) << "scalar " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Modded, ModdedParity, testing::ValuesIn(test::kModdedModels), name_of_model);

}  // namespace
}  // namespace polaron

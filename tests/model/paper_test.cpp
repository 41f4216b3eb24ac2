// The authors' models as configs/paper has them: sizes, initial loss, and which gradients vanish at first.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <ostream>
#include <string>

#include "config/config.h"
#include "model/window.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

std::string path_of(const std::string& name) {
  return (std::filesystem::path(POLARON_SOURCE_DIR) / "configs" / "paper" / (name + ".json")).string();
}

struct Size {
  const char* name;
  std::int64_t parameters, matrices, without_value_embeddings;
  friend std::ostream& operator<<(std::ostream& out, const Size& size) { return out << size.name; }
};

class PaperModel : public testing::TestWithParam<Size> {};

TEST_P(PaperModel, has_exactly_the_authors_parameters) {
  const TransformerConfig model = load_config(path_of(GetParam().name)).model;
  const ParameterTable table(model);
  EXPECT_EQ(table.elements(), GetParam().parameters);
  EXPECT_EQ(table.elements(Role::matrix), GetParam().matrices);
  EXPECT_EQ(table.elements() - model.value_embeddings * model.vocabulary * model.width,
            GetParam().without_value_embeddings);
}

INSTANTIATE_TEST_SUITE_P(Sizes, PaperModel,
                         testing::Values(Size{"gpt2-tiny", 153847848, 25165824, 76653096},
                                         Size{"gpt2-small", 277957692, 84934656, 162165564},
                                         Size{"gpt2-medium", 454496336, 197132288, 300106832},
                                         Size{"llama-tiny", 148270120, 19570688, 71075368},
                                         Size{"llama-small", 259112508, 66051072, 143320380},
                                         Size{"llama-medium", 492312696, 234848256, 337923192},
                                         Size{"gpt2-large", 1713635328, 1610612736, 1713635328},
                                         Size{"llama-large", 1713768448, 1610612736, 1713768448}),
                         [](const auto& chosen) {
                           std::string name = chosen.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// The six modded models with their whole softmax and all of their structure, narrow, with fewer tokens, and on a short
// sequence.
class ModdedModel : public testing::TestWithParam<std::string> {
 protected:
  static constexpr std::int64_t kLength = 384;
  static std::vector<std::string> narrow() {
    return {"model.width=64", "model.heads=1", "model.head_size=64", "model.mlp_hidden=100",
            "training.sequence_length=384"};
  }
  ModdedModel() {
    std::vector<float> weights(static_cast<std::size_t>(model_.table().stored_elements()));
    initialize_weights(model_.table(), 1, weights.data());
    model_.set_weights(weights);
    std::vector<std::int32_t> start(kLength);
    for (std::int64_t t = 0; t < kLength; ++t) start[static_cast<std::size_t>(t)] = t < 200 ? 0 : 200;
    batch_.document_start.resize(kLength);
    batch_.short_window.resize(kLength);
    block_window(start, config_.window_block, 2, batch_.document_start);
    block_window(start, config_.window_block, 1, batch_.short_window);
  }
  // The largest gradient of the parameters whose name ends so.
  double largest(const std::string& ending) const {
    const std::vector<float> gradients = model_.gradients();
    double most = 0.0;
    for (const Parameter& p : model_.table().all()) {
      if (!p.name.ends_with(ending)) continue;
      for (std::int64_t i = 0; i < p.stored_elements(); ++i) {
        most = test::worse(most, std::abs(static_cast<double>(gradients[static_cast<std::size_t>(p.offset + i)])));
      }
    }
    return most;
  }

  TransformerConfig config_ = load_config(path_of(GetParam()), narrow()).model;
  test::TinyModel model_{config_, test::shape_for(1, kLength)};
  test::HostBatch batch_ = test::random_batch(1, kLength, config_.vocabulary, 3);
};

TEST_P(ModdedModel, begins_at_the_loss_of_a_uniform_guess) {
  EXPECT_NEAR(model_.loss_sum(batch_) / kLength, 10.82584, 1e-5);  // ln 50304
}

TEST_P(ModdedModel, gradients_reach_the_blocks_only_after_head_and_outputs_have_moved) {
  const std::string up = config_.mlp == MlpKind::swiglu ? "mlp.gate_up.weight" : "mlp.up.weight";
  model_.train(batch_, 1.0 / kLength);
  EXPECT_GT(largest("head.weight"), 0.0);
  for (const std::string& name : {std::string("attention.qkv.weight"), std::string("attention.out.weight"), up,
                                  std::string("mlp.down.weight"), std::string("embedding.token")}) {
    EXPECT_EQ(largest(name), 0.0) << name;
  }
  std::vector<float> weights = model_.weights();
  const std::vector<float> gradients = model_.gradients();
  const Parameter& head = model_.table()[model_.table().index("head.weight")];
  for (std::int64_t i = head.offset; i < head.offset + head.stored_elements(); ++i) {
    weights[static_cast<std::size_t>(i)] -= gradients[static_cast<std::size_t>(i)];
  }
  model_.set_weights(weights);
  model_.train(batch_, 1.0 / kLength);
  for (const std::string& name :
       {std::string("attention.out.weight"), std::string("mlp.down.weight"), std::string("embedding.token")}) {
    EXPECT_GT(largest(name), 0.0) << name;
  }
  EXPECT_EQ(largest("attention.qkv.weight"), 0.0);
  EXPECT_EQ(largest(up), 0.0);
}

INSTANTIATE_TEST_SUITE_P(Modded, ModdedModel,
                         testing::Values("gpt2-tiny", "gpt2-small", "gpt2-medium", "llama-tiny", "llama-small",
                                         "llama-medium"),
                         [](const auto& chosen) {
                           std::string name = chosen.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace polaron

// Quirks of the authors' code (docs/paper.md): each does what it says in a run, and resumes to the bit.
#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "io/safetensors.h"
#include "support.h"

namespace polaron::test {
namespace {
using nlohmann::json;

class Quirks : public testing::Test {
 protected:
  Quirks() { folder_.write_data(); }
  std::vector<double> losses_of(const std::string& name, const json& patch, const Arguments& more = {}) {
    Arguments arguments = {"train", folder_.write_config(name, patch)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_ended(folder_.run(arguments), 0);
    return folder_.losses(name);
  }
  // Norms of the gradients that the steps took.
  std::vector<double> norms_of(const std::string& name, const json& patch) {
    losses_of(name, patch);
    std::vector<double> norms;
    for (const json& step : folder_.metrics(name)) norms.push_back(step.at("grad_norm").get<double>());
    return norms;
  }
  Workspace folder_;
};

json with_previous(std::int64_t dropped_every) {
  return {{"quirks", {{"previous_batch_gradient", true}, {"previous_batch_dropped_every", dropped_every}}},
          {"training", {{"gradient_clip", 0}}},
          {"checkpoint", {{"every", 5}}}};
}

// The weights stay where they were: every step's gradient is one at the first weights.
json at_rest(const json& patch) {
  json result = patch;
  for (const char* group : {"matrices", "embeddings", "vectors"}) result["optimizer"][group]["lr"] = 0;
  return result;
}

// Every sequence of training is this one, 17 tokens long, so that all batches are equal.
std::string periodic_shard() {
  std::vector<int> tokens;
  for (int i = 0; i < 6000; ++i) tokens.push_back("a dozen of eggs "[i % 16]);
  return shard(tokens);
}

void expect_ratios(const std::vector<double>& values, const std::vector<double>& of,
                   const std::vector<double>& expected) {
  ASSERT_EQ(values.size(), expected.size());
  ASSERT_EQ(of.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(values[i] / of[i], expected[i], 1e-6) << "step " << i + 1;
  }
}

TEST_F(Quirks, the_gradient_of_an_equal_batch_before_doubles_that_of_every_step_but_the_first) {
  folder_.write("data/equal_0.bin", periodic_shard());
  const json equal = {
      {"data", {{"train", "data/equal_*.bin"}}}, {"training", {{"steps", 7}}}, {"checkpoint", {{"every", 0}}}};
  json clean = at_rest(equal), both = clean, dropped = clean;
  clean["training"]["gradient_clip"] = 0;
  both.merge_patch(with_previous(0));
  dropped.merge_patch(with_previous(3));
  const std::vector<double> once = norms_of("clean", clean);
  expect_ratios(once, std::vector<double>(7, once.front()), {1, 1, 1, 1, 1, 1, 1});
  expect_ratios(norms_of("both", both), once, {1, 2, 2, 2, 2, 2, 2});
  // Steps are counted from 0 for that, as in the authors' loop: 0, 3 and 6 are their batch's alone.
  expect_ratios(norms_of("dropped", dropped), once, {1, 2, 2, 1, 2, 2, 1});
  // The loss is the batch's own.
  expect_ratios(folder_.losses("both"), folder_.losses("clean"), {1, 1, 1, 1, 1, 1, 1});
}

TEST_F(Quirks, the_gradient_of_the_batch_before_is_added_to_that_of_the_batch) {
  const json in_order = {{"data", {{"shuffle", false}}}, {"training", {{"steps", 4}}}, {"checkpoint", {{"every", 0}}}};
  json both = at_rest(in_order), twice = both;
  both.merge_patch(with_previous(0));
  // A batch of 16 sequences is two of 8, and its gradient the mean of theirs.
  twice["training"].update({{"batch", 16}, {"steps", 2}, {"gradient_clip", 0}});
  const std::vector<double> sums = norms_of("both", both), means = norms_of("twice", twice);
  ASSERT_EQ(sums.size(), 4U);
  ASSERT_EQ(means.size(), 2U);
  expect_ratios({sums[1], sums[3]}, means, {2, 2});
  EXPECT_GT(std::abs(sums[0] / means[0] - 1), 1e-3) << "all batches are alike";
}

// The sum of a step is taken at the step's weights, not kept from the step before.
TEST_F(Quirks, the_gradient_of_the_batch_before_is_at_the_present_weights) {
  folder_.write("data/equal_0.bin", periodic_shard());
  const json equal = {{"data", {{"train", "data/equal_*.bin"}}},
                      {"training", {{"steps", 2}}},
                      {"schedule", {{"type", "constant"}}},
                      {"checkpoint", {{"every", 0}}}};
  json clean = equal, both = equal;
  clean["training"]["gradient_clip"] = 0;
  both.merge_patch(with_previous(0));
  const std::vector<double> once = norms_of("clean", clean), sums = norms_of("both", both);
  expect_ratios(sums, once, {1, 2});
  EXPECT_GT(std::abs(once[1] / once[0] - 1), 1e-3) << "the first step moved nothing";
}

TEST_F(Quirks, a_run_that_always_drops_the_batch_before_is_one_without_the_quirk) {
  const std::vector<double> clean = losses_of("clean", {{"training", {{"gradient_clip", 0}}}});
  const std::vector<double> both = losses_of("both", with_previous(0));
  EXPECT_EQ(std::vector<double>(both.begin(), both.begin() + 2), std::vector<double>(clean.begin(), clean.begin() + 2))
      << "the first update has no batch before it";
  EXPECT_NE(both[2], clean[2]);
  EXPECT_EQ(losses_of("dropped", with_previous(1)), clean);
}

TEST_F(Quirks, a_run_with_the_gradient_of_the_batch_before_resumes_to_the_bit) {
  const std::vector<double> whole = losses_of("whole", with_previous(3));
  losses_of("parts", with_previous(3), {"--set", "training.steps=5", "--set", "schedule.type=constant"});
  json constant = with_previous(3);
  constant["schedule"] = {{"type", "constant"}};
  const std::vector<double> expected = losses_of("expected", constant);
  const std::vector<double> resumed = losses_of("parts", constant, {"--resume"});
  EXPECT_EQ(resumed, expected);
  EXPECT_NE(whole, expected);
}

// The tensors of a file of the newest checkpoint whose values are all bf16 numbers, by name.
std::vector<std::string> bf16_tensors_of(const Workspace& folder, const std::string& run, const std::string& file) {
  const SafetensorsReader reader(folder / ("runs/" + run + "/checkpoints/latest/" + file));
  std::vector<std::string> names;
  for (const TensorInfo& tensor : reader.tensors()) {
    std::vector<float> values(tensor.bytes() / sizeof(float));
    reader.read_f32(tensor.name, values.data(), values.size());
    const bool rounded = std::all_of(values.begin(), values.end(),
                                     [](float value) { return (std::bit_cast<std::uint32_t>(value) & 0xffffU) == 0; });
    if (rounded) names.push_back(tensor.name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST_F(Quirks, of_adamw_leave_bf16_weights_or_moments_of_the_group_that_has_them) {
  const json adamw = {{"optimizer", {{"matrices", {{"type", "adamw"}, {"rank", nullptr}}}}},
                      {"training", {{"steps", 3}}}};
  losses_of("clean", adamw);
  const char* const weights = "model.safetensors";
  const char* const moments = "optimizer.safetensors";
  EXPECT_EQ(bf16_tensors_of(folder_, "clean", weights), std::vector<std::string>());
  EXPECT_EQ(bf16_tensors_of(folder_, "clean", moments), std::vector<std::string>());
  const auto moments_of = [](const std::vector<std::string>& names) {
    std::vector<std::string> both;
    for (const char* which : {"adamw.m.", "adamw.v."}) {
      for (const std::string& name : names) both.push_back(which + name);
    }
    return both;
  };
  struct Group {
    const char* name;
    std::vector<std::string> weights, moments;
  };
  const Group groups[] = {
      {"matrices",
       {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_proj.weight", "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight"},
       moments_of({"blocks.0.attention.out.weight", "blocks.0.attention.qkv.weight", "blocks.0.mlp.down.weight",
                   "blocks.0.mlp.up.weight"})},
      {"embeddings",
       {"transformer.wpe.weight", "transformer.wte.weight"},
       moments_of({"embedding.position", "embedding.token"})},
  };
  const std::vector<std::string> none;
  for (const Group& group : groups) {
    for (const bool of_weights : {true, false}) {
      const char* const key = of_weights ? "bf16_weights" : "bf16_moments";
      json patch = adamw;
      patch["optimizer"][group.name][key] = true;
      const std::string run = std::string(group.name) + "_" + key;
      losses_of(run, patch);
      EXPECT_EQ(bf16_tensors_of(folder_, run, weights), of_weights ? group.weights : none) << run;
      EXPECT_EQ(bf16_tensors_of(folder_, run, moments), of_weights ? none : group.moments) << run;
    }
  }
}

TEST_F(Quirks, vectors_without_a_rate_end_as_ones_and_zeros) {
  losses_of("frozen", {{"optimizer", {{"vectors", {{"lr", 0}}}}}});
  const SafetensorsReader reader(folder_ / "runs/frozen/checkpoints/latest/model.safetensors");
  std::size_t vectors = 0;
  for (const TensorInfo& tensor : reader.tensors()) {
    std::vector<float> values(tensor.bytes() / sizeof(float));
    reader.read_f32(tensor.name, values.data(), values.size());
    const bool gain = contains(tensor.name, ".ln_") && tensor.name.ends_with(".weight");
    const bool vector = gain || tensor.name.ends_with(".bias");
    if (vector) {
      EXPECT_EQ(values, std::vector<float>(values.size(), gain ? 1.0F : 0.0F)) << tensor.name;
    }
    vectors += vector ? 1 : 0;
  }
  EXPECT_EQ(vectors, 10U);  // three norms of two, four biases
}

TEST_F(Quirks, of_the_sketch_change_the_run_and_those_of_adamw_are_refused_elsewhere) {
  json low_rank = {{"optimizer", {{"matrices", {{"type", "low_rank_muon"}, {"rank", 4}}}}}};
  const std::vector<double> columns = losses_of("columns", low_rank);
  low_rank["quirks"] = {{"shared_columns", true}};
  EXPECT_NE(losses_of("shared", low_rank), columns);
  low_rank.erase("quirks");
  low_rank["optimizer"]["matrices"]["sketch"] = "columns_authors";
  EXPECT_NE(losses_of("leading", low_rank), columns);
  low_rank["optimizer"]["matrices"]["bf16_weights"] = true;
  const Outcome refused = folder_.run({"train", folder_.write_config("refused", low_rank)});
  expect_ended(refused, 2);
  EXPECT_TRUE(contains(refused.err, "bf16_weights is for adamw")) << refused.err;
}

}  // namespace
}  // namespace polaron::test

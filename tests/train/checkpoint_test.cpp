// Checkpoints: what is written comes back to the bit, and whatever is damaged, missing or foreign is refused by name.
#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/checksum.h"
#include "io/helpers.h"
#include "optim/stepper.h"
#include "parity/fixture.h"

namespace polaron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::contains;
using test::data_error;
using test::Stepper;
using test::TestFolder;

OptimizerConfig optimizer_config(OptimizerKind kind = OptimizerKind::muon) {
  return test::matrices_under(test::settings_of(kind));
}

TrainerState trainer_state() {
  TrainerState state;
  state.step = 123;
  state.tokens = 123LL * 4096;
  state.data_fingerprint = 0xFEDCBA9876543210ULL;
  state.loss_history = {5.5, 1.0 / 3.0, 1e-300};
  state.config = R"({"name": "run", "training": {"steps": 200}})";
  return state;
}

const char* const kVocabulary = R"({"name": "bytes", "size": 61})";

ModelWeights weights_of(const TransformerConfig& config, Stepper& stepper) {
  return {config, stepper.table(), stepper.weights_on_device()};
}

void write(const fs::path& folder, const TransformerConfig& config, Stepper& stepper,
           const std::string& vocabulary = kVocabulary) {
  write_checkpoint(folder, stepper.backend(), stepper.stream(), stepper.communicator(), weights_of(config, stepper),
                   stepper.optimizer().state(), trainer_state(), vocabulary, 3);
}

// A checkpoint of a small trained model in a folder of its own.
class Checkpoint : public testing::Test {
 protected:
  Checkpoint() : config_(test::tiny_llama()), stepper_(config_, optimizer_config()) {
    stepper_.run(2);
    write(path(), config_, stepper_);
  }
  fs::path path() const { return folder_ / "checkpoint"; }
  // After changes to its files: the manifest of what is there now.
  void renew_manifest() const {
    fs::remove(path() / "checksums.json");
    write_manifest(path());
  }

  TestFolder folder_;
  TransformerConfig config_;
  Stepper stepper_;
};

constexpr const char* kFiles[] = {"model.safetensors", "optimizer.safetensors", "config.json",
                                  "trainer.json",      "vocabulary.json",       "checksums.json"};

// --- round trip
// -------------------------------------------------------------------------------------------------------

TEST_F(Checkpoint, holds_exactly_the_documented_files) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(path())) names.insert(entry.path().filename());
  EXPECT_EQ(names, std::set<std::string>(std::begin(kFiles), std::end(kFiles)));
  EXPECT_EQ(folder_.names(), std::vector<std::string>{"checkpoint"});  // no temporaries
}

TEST(CheckpointRoundTrip, gives_the_bits_of_weights_and_optimizer_state) {
  TransformerConfig native = test::tiny_llama();
  native.qk_norm = true;
  for (const TransformerConfig& config : {test::tiny_gpt2(), test::tiny_llama(), native}) {
    for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::sgd, OptimizerKind::muon,
                                     OptimizerKind::low_rank_muon, OptimizerKind::low_rank_msgd}) {
      const TestFolder folder;
      Stepper writer(config, optimizer_config(kind));
      writer.run(2);
      write(folder / "checkpoint", config, writer);

      const CheckpointReader reader(folder / "checkpoint");
      EXPECT_EQ(reader.model(), config);
      Stepper resumed(reader.model(), optimizer_config(kind));
      resumed.set_weights(std::vector<float>(resumed.weights().size()));
      reader.load_weights(resumed.backend(), resumed.stream(), weights_of(reader.model(), resumed));
      reader.load_optimizer(resumed.backend(), resumed.stream(), resumed.optimizer().state());
      EXPECT_EQ(resumed.weights(), writer.weights());
      EXPECT_EQ(resumed.state(), writer.state());
      // Going on from there is going on without the break.
      const std::vector<float> gradients = test::random_weights(writer.table(), 77);
      writer.step(2, gradients);
      resumed.step(2, gradients);
      EXPECT_EQ(resumed.weights(), writer.weights());
    }
  }
}

TEST_F(Checkpoint, gives_back_the_trainers_state) {
  const CheckpointReader reader(path());
  ASSERT_TRUE(reader.resumable());
  EXPECT_EQ(reader.state().step, 123);
  EXPECT_EQ(reader.state().tokens, 123 * 4096);
  EXPECT_EQ(reader.state().data_fingerprint, 0xFEDCBA9876543210ULL);
  EXPECT_EQ(reader.state().loss_history, trainer_state().loss_history);
  EXPECT_EQ(json::parse(reader.state().config), json::parse(trainer_state().config));
  EXPECT_EQ(json::parse(reader.vocabulary()), json::parse(kVocabulary));
}

TEST_F(Checkpoint, without_a_vocabulary_has_none) {
  write(folder_ / "other", config_, stepper_, "");
  EXPECT_FALSE(fs::exists(folder_ / "other" / "vocabulary.json"));
  EXPECT_EQ(CheckpointReader(folder_ / "other").vocabulary(), "");
}

TEST_F(Checkpoint, replaces_one_that_is_there) {
  stepper_.run(1);
  write(path(), config_, stepper_);
  Stepper loaded(config_, optimizer_config());
  CheckpointReader(path()).load_weights(loaded.backend(), loaded.stream(), weights_of(config_, loaded));
  EXPECT_EQ(loaded.weights(), stepper_.weights());
  EXPECT_EQ(folder_.names(), std::vector<std::string>{"checkpoint"});
}

TEST_F(Checkpoint, tensors_have_the_shapes_of_transformers_without_padding) {
  const SafetensorsReader file(path() / "model.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.at("model.layers.1.mlp.down_proj.weight").shape, (std::vector<std::int64_t>{32, 85}));
  EXPECT_EQ(file.at("model.layers.0.self_attn.k_proj.weight").shape, (std::vector<std::int64_t>{16, 32}));
  EXPECT_EQ(file.at("model.embed_tokens.weight").shape, (std::vector<std::int64_t>{61, 32}));
  EXPECT_EQ(file.at("model.norm.weight").shape, std::vector<std::int64_t>{32});
}

// --- models that transformers wrote
// -----------------------------------------------------------------------------------

TEST(CheckpointOfTransformers, holds_weights_and_cannot_be_resumed) {
  const CheckpointReader reader(test::fixtures() / "gpt2");
  EXPECT_FALSE(reader.resumable());
  EXPECT_EQ(reader.vocabulary(), "");
  const std::string message = data_error([&] { reader.state(); });
  EXPECT_TRUE(contains(message, (test::fixtures() / "gpt2").string()));
  EXPECT_TRUE(contains(message, "--init-from"));
}

TEST(CheckpointOfTransformers, in_bfloat16_is_read_as_the_same_numbers) {
  const TestFolder folder;
  const fs::path source = test::fixtures() / "llama";
  fs::copy_file(source / "config.json", folder / "config.json");
  const SafetensorsReader exact(source / "model.safetensors");
  std::vector<TensorInfo> infos;
  for (const TensorInfo& info : exact.tensors()) infos.push_back({info.name, "BF16", info.shape, 0, 0});
  SafetensorsWriter writer(folder / "model.safetensors", infos, {{"format", "pt"}});
  for (const TensorInfo& info : writer.tensors()) {
    std::vector<std::uint16_t> upper;
    for (const float value : test::read_floats(exact, info.name)) {
      upper.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U));
    }
    writer.write(info.name, test::bytes_of(upper));
  }
  writer.finish();

  const auto loaded = [](const fs::path& from) {
    const CheckpointReader reader(from);
    Stepper stepper(reader.model(), optimizer_config());
    reader.load_weights(stepper.backend(), stepper.stream(), weights_of(reader.model(), stepper));
    return stepper.weights();
  };
  std::vector<float> truncated = loaded(source);
  for (float& value : truncated) value = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & 0xFFFF0000U);
  EXPECT_EQ(loaded(folder.path()), truncated);
}

// --- damage
// -----------------------------------------------------------------------------------------------------------

TEST_F(Checkpoint, a_flipped_bit_in_any_file_is_found_and_the_file_named) {
  for (const char* name : kFiles) {
    const std::string good = test::get(path() / name);
    for (const std::size_t at : {std::size_t{0}, good.size() / 3, good.size() / 2, good.size() - 1}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x10);
      test::put(path() / name, bad);
      const std::string message = data_error([&] { CheckpointReader{path()}; });
      // A damaged manifest may accuse another file of the folder.
      EXPECT_TRUE(contains(message, std::string_view(name) == "checksums.json" ? path().string() : name));
    }
    test::put(path() / name, good);
  }
  EXPECT_NO_THROW(CheckpointReader{path()});
}

TEST_F(Checkpoint, a_file_cut_short_is_found_and_named) {
  for (const char* name : kFiles) {
    const std::string good = test::get(path() / name);
    for (const std::size_t size : {std::size_t{0}, good.size() / 2, good.size() - 1}) {
      if (std::string_view(name) == "checksums.json" && size == good.size() - 1) continue;  // the newline at its end
      test::put(path() / name, std::string_view(good).substr(0, size));
      EXPECT_TRUE(contains(data_error([&] { CheckpointReader{path()}; }), name)) << size;
    }
    test::put(path() / name, good);
  }
}

TEST_F(Checkpoint, a_missing_file_is_found_and_named) {
  for (const char* name : kFiles) {
    fs::rename(path() / name, folder_ / "aside");
    EXPECT_TRUE(contains(data_error([&] { CheckpointReader{path()}; }), name));
    fs::rename(folder_ / "aside", path() / name);
  }
}

TEST_F(Checkpoint, a_newer_format_version_is_refused_with_the_program_to_use) {
  json trainer = json::parse(test::get(path() / "trainer.json"));
  trainer["format_version"] = 99;
  trainer["polaron_version"] = "7.8.9";
  test::put(path() / "trainer.json", trainer.dump());
  renew_manifest();
  const std::string message = data_error([&] { CheckpointReader{path()}; });
  EXPECT_TRUE(contains(message, "trainer.json"));
  EXPECT_TRUE(contains(message, "99"));
  EXPECT_TRUE(contains(message, "7.8.9"));
}

TEST_F(Checkpoint, a_trainer_json_of_wrong_types_is_refused_by_name) {
  for (const char* patch : {R"({"step": "many"})", R"({"tokens": null})", R"({"data_fingerprint": "xyz"})",
                            R"({"loss_history": 3})", R"({"format_version": null})"}) {
    const std::string good = test::get(path() / "trainer.json");
    json trainer = json::parse(good);
    trainer.merge_patch(json::parse(patch));
    test::put(path() / "trainer.json", trainer.dump());
    renew_manifest();
    EXPECT_TRUE(contains(data_error([&] { CheckpointReader{path()}; }), "trainer.json")) << patch;
    test::put(path() / "trainer.json", good);
  }
}

// --- other models and optimizers
// --------------------------------------------------------------------------------------

TEST_F(Checkpoint, weights_of_another_architecture_are_refused_by_tensor) {
  const CheckpointReader reader(path());
  const auto refusal = [&](const TransformerConfig& other) {
    Stepper stepper(other, optimizer_config());
    return data_error([&] { reader.load_weights(stepper.backend(), stepper.stream(), weights_of(other, stepper)); });
  };
  EXPECT_TRUE(contains(refusal(test::tiny_gpt2()), "embedding.position"));
  TransformerConfig deeper = config_;
  deeper.layers = 3;
  EXPECT_TRUE(contains(refusal(deeper), "model.layers.2."));
  TransformerConfig wider = config_;
  wider.mlp_hidden = 86;
  const std::string message = refusal(wider);
  EXPECT_TRUE(contains(message, "mlp.gate_proj.weight"));
  EXPECT_TRUE(contains(message, "85, 32"));
  EXPECT_TRUE(contains(message, "86, 32"));
}

TEST_F(Checkpoint, state_of_another_optimizer_is_refused_by_name) {
  const CheckpointReader reader(path());
  Stepper adamw(config_, optimizer_config(OptimizerKind::adamw));
  const std::string message =
      data_error([&] { reader.load_optimizer(adamw.backend(), adamw.stream(), adamw.optimizer().state()); });
  EXPECT_TRUE(contains(message, "optimizer.safetensors"));
  EXPECT_TRUE(contains(message, "adamw.m.blocks.0.attention.qkv.weight"));
}

// --- writing
// ----------------------------------------------------------------------------------------------------------

TEST_F(Checkpoint, weights_that_are_not_finite_are_not_written) {
  std::vector<float> weights = stepper_.weights();
  const Parameter& p = stepper_.table()[stepper_.table().index("blocks.1.mlp.down.weight")];
  weights[static_cast<std::size_t>(p.offset + 3)] = std::numeric_limits<float>::infinity();
  stepper_.set_weights(weights);
  try {
    write(folder_ / "other", config_, stepper_);
    FAIL() << "written";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::numerical);
    EXPECT_TRUE(contains(error.what(), "model.layers.1.mlp.down_proj.weight"));
  }
  EXPECT_EQ(folder_.names(), std::vector<std::string>{"checkpoint"});
}

TEST_F(Checkpoint, a_place_that_cannot_be_written_is_named) {
  test::put(folder_ / "file", "not a folder");
  const std::string message = data_error([&] { write(folder_ / "file" / "checkpoint", config_, stepper_); });
  EXPECT_TRUE(contains(message, (folder_ / "file").string()));
}

TEST_F(Checkpoint, keeps_the_choices_of_the_backend_where_it_makes_any) {
  EXPECT_TRUE(CheckpointReader(path()).state().tuned.empty());  // the CPU makes none
  EXPECT_FALSE(fs::exists(path() / "tuning.bin"));
  TrainerState state = trainer_state();
  for (const int byte : {0, 255, 10, 26, 13, 0}) state.tuned.push_back(static_cast<std::byte>(byte));
  const fs::path other = folder_ / "other";
  write_checkpoint(other, stepper_.backend(), stepper_.stream(), stepper_.communicator(), weights_of(config_, stepper_),
                   stepper_.optimizer().state(), state, "", 3);
  EXPECT_TRUE(CheckpointReader(other).state().tuned == state.tuned);
  EXPECT_EQ(read_manifest(other).count("tuning.bin"), 1U);
}

// --- run directories
// --------------------------------------------------------------------------------------------------

class RunDirectory : public testing::Test {
 protected:
  RunDirectory() : config_(test::tiny_gpt2()), stepper_(config_, optimizer_config()) {}
  fs::path run() const { return folder_ / "run"; }
  void save(std::int64_t step, std::int64_t keep, const std::vector<fs::path>& left_behind = {}) {
    TrainerState state = trainer_state();
    state.step = step;
    write_checkpoint(checkpoint_folder(run(), step), stepper_.backend(), stepper_.stream(), stepper_.communicator(),
                     weights_of(config_, stepper_), stepper_.optimizer().state(), state, "", -1);
    finish_checkpoint(run(), step, keep, left_behind);
  }
  std::set<std::string> names() const {
    std::set<std::string> result;
    for (const auto& entry : fs::directory_iterator(run() / "checkpoints")) result.insert(entry.path().filename());
    return result;
  }

  TestFolder folder_;
  TransformerConfig config_;
  Stepper stepper_;
};

TEST_F(RunDirectory, keeps_the_most_recent_checkpoints) {
  EXPECT_FALSE(has_checkpoint(run()));
  for (const std::int64_t step : {2, 10, 100, 1000}) save(step, 2);
  EXPECT_EQ(names(), (std::set<std::string>{"latest", "step-00000100", "step-00001000"}));
  EXPECT_TRUE(has_checkpoint(run()));
  EXPECT_EQ(fs::read_symlink(run() / "checkpoints" / "latest"), "step-00001000");  // relative: the run can be moved
}

TEST_F(RunDirectory, after_going_back_removes_first_what_was_left_behind) {
  for (const std::int64_t step : {4, 6, 8, 12}) save(step, 0);
  const std::vector<fs::path> left = later_checkpoints(run(), 4);
  EXPECT_EQ(left, (std::vector<fs::path>{checkpoint_folder(run(), 6), checkpoint_folder(run(), 8),
                                         checkpoint_folder(run(), 12)}));
  save(7, 3, left);
  EXPECT_EQ(names(), (std::set<std::string>{"latest", "step-00000004", "step-00000007", "step-00000012"}));
  save(10, 2, left);
  EXPECT_EQ(names(), (std::set<std::string>{"latest", "step-00000007", "step-00000010"}));
}

TEST_F(RunDirectory, keeps_all_checkpoints_when_told) {
  for (const std::int64_t step : {1, 2, 3}) save(step, 0);
  EXPECT_EQ(names().size(), 4U);
}

TEST_F(RunDirectory, takes_only_its_own_names_for_checkpoints) {
  const std::set<std::string> others = {"step-best", "step-00000004-mine", "step-00000004.old", "step-7", "step-"};
  for (const std::string& name : others) fs::create_directories(run() / "checkpoints" / name);
  EXPECT_FALSE(has_checkpoint(run()));
  for (const std::int64_t step : {4, 5, 123456789}) save(step, 1);
  std::set<std::string> expected = others;
  expected.insert({"latest", "step-123456789"});
  EXPECT_EQ(names(), expected);
}

TEST_F(RunDirectory, never_removes_the_checkpoint_it_has_just_made) {
  save(10, 1);
  save(20, 1);
  save(5, 1);  // resumed from an earlier one
  EXPECT_EQ(names().count("step-00000005"), 1U);
  EXPECT_EQ(CheckpointReader(run()).state().step, 5);
}

TEST_F(RunDirectory, opens_at_the_latest_checkpoint_from_any_of_its_folders) {
  save(10, 0);
  save(20, 0);
  test::put(run() / "config.json", "{}");  // the run's own
  for (const fs::path& path : {run(), run() / "checkpoints", run() / "checkpoints" / "latest"}) {
    EXPECT_EQ(CheckpointReader(path).state().step, 20) << path;
  }
  EXPECT_EQ(CheckpointReader(checkpoint_folder(run(), 10)).state().step, 10);
}

TEST_F(RunDirectory, whose_latest_is_missing_opens_at_the_newest_step) {
  save(10, 0);
  save(20, 0);
  fs::remove(run() / "checkpoints" / "latest");
  EXPECT_TRUE(has_checkpoint(run()));
  EXPECT_EQ(CheckpointReader(run()).state().step, 20);
}

TEST_F(RunDirectory, without_a_whole_checkpoint_is_refused) {
  EXPECT_TRUE(contains(data_error([&] { CheckpointReader{run()}; }), run().string()));  // does not exist
  fs::create_directories(run() / "checkpoints");
  EXPECT_TRUE(contains(data_error([&] { CheckpointReader{run()}; }), run().string()));
  fs::create_directories(run() / "checkpoints" / "step-00000001");  // nothing in it
  EXPECT_TRUE(contains(data_error([&] { CheckpointReader{run()}; }), "step-00000001"));
}

}  // namespace
}  // namespace polaron

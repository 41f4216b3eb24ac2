// What runs compute and record, and what generate and init-from make of them.
#include <algorithm>
#include <cmath>

#include "io/safetensors.h"
#include "support.h"
#include "support/worse.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) largest = worse(largest, std::abs(a[i] - b[i]));
  return largest;
}

std::string weights_of(const Workspace& folder, const std::string& run) {
  return folder.read("runs/" + run + "/checkpoints/latest/model.safetensors");
}

void expect_finite_weights(const Workspace& folder, const std::string& run) {
  const SafetensorsReader reader(folder / ("runs/" + run + "/checkpoints/latest/model.safetensors"));
  ASSERT_FALSE(reader.tensors().empty());
  for (const TensorInfo& tensor : reader.tensors()) {
    std::vector<float> values(tensor.bytes() / sizeof(float));
    reader.read_f32(tensor.name, values.data(), values.size());
    EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }))
        << tensor.name;
  }
}

json matrices(const json& settings) { return {{"optimizer", {{"matrices", settings}}}}; }

TEST(Run, twice_gives_the_same_bits_and_the_same_losses) {
  const Workspace folder;
  folder.write_data();
  for (const int threads : {1, 2}) {
    SCOPED_TRACE(threads);
    const std::string name = "threads" + std::to_string(threads);
    const json patch = {{"threads", threads}, {"training", {{"steps", 5}, {"micro_batch", 4}}}};
    folder.train(name + "a", patch);
    folder.train(name + "b", patch);
    EXPECT_EQ(folder.losses(name + "a"), folder.losses(name + "b"));
    EXPECT_TRUE(weights_of(folder, name + "a") == weights_of(folder, name + "b"));
  }
}

TEST(Run, bf16_is_refused_where_it_is_slow_unless_asked_for) {
  const Workspace folder;
  folder.write_data();
  for (const char* key : {"precision", "newton_schulz_precision"}) {
    json patch = key == std::string("precision") ? json{{key, "bf16"}} : matrices({{key, "bf16"}});
    patch["training"]["steps"] = 3;
    const Outcome outcome = folder.run({"train", folder.write_config(std::string(key) + "_a", patch)});
    if (outcome.code == 0) GTEST_SKIP() << "bf16 is fast here";
    expect_refused(outcome, Exit::usage, {std::string(key) + " \"bf16\"", "slower", "allow_slow_bf16"});
    patch["allow_slow_bf16"] = true;
    folder.train(std::string(key) + "_b", patch);
    folder.train("fp32", {{"training", {{"steps", 3}}}});
    const double difference = largest_difference(folder.losses(std::string(key) + "_b"), folder.losses("fp32"));
    EXPECT_GT(difference, 0.0) << key;
    EXPECT_LT(difference, 5e-3) << key;
    fs::remove_all(folder / "runs/fp32");
  }
}

TEST(Run, learns_and_another_seed_learns_otherwise) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 60}}}});
  folder.train("b", {{"training", {{"steps", 60}}}, {"seed", 2}});
  const auto a = folder.losses("a");
  EXPECT_NEAR(a.front(), std::log(257.0), 0.2);  // knows nothing yet
  EXPECT_LT(a.back(), 3.2);                      // which letters there are
  EXPECT_NE(a, folder.losses("b"));
}

TEST(Run, records_everything_in_order) {
  const Workspace folder;
  folder.write_data();
  const json patch = {{"training", {{"steps", 10}}},
                      {"validation", {{"every", 4}, {"tokens", 700}}},
                      {"checkpoint", {{"every", 5}}},
                      {"sample", {{"every", 6}, {"prompt", "the "}, {"tokens", 12}}}};
  const Outcome outcome = folder.train("a", patch);
  EXPECT_EQ(outcome.err, "");
  std::string kinds;
  for (const json& record : folder.metrics("a", "")) {
    kinds += record.at("kind").get<std::string>() + " " + std::to_string(record.at("step").get<int>()) + "\n";
  }
  EXPECT_EQ(kinds,
            "run 0\nvalidation 0\nstep 1\nstep 2\nstep 3\nstep 4\nvalidation 4\nstep 5\ncheckpoint 5\nstep 6\n"
            "sample 6\nstep 7\nstep 8\nvalidation 8\nstep 9\nstep 10\nvalidation 10\ncheckpoint 10\nend 10\n");
  for (const json& record : folder.metrics("a", "validation")) {
    EXPECT_EQ(record.at("val_tokens"), 700);
    EXPECT_DOUBLE_EQ(record.at("perplexity").get<double>(), std::exp(record.at("val_loss").get<double>()));
  }
  const json sample = folder.metrics("a", "sample").at(0);
  EXPECT_EQ(sample.at("prompt"), "the ");
  EXPECT_FALSE(sample.at("text").get<std::string>().empty());
  EXPECT_TRUE(contains(outcome.out, "sample at step 6")) << outcome.out;
  const json run = folder.metrics("a", "run").at(0);
  EXPECT_EQ(run.at("optimizer"), "low_rank_muon");
  EXPECT_EQ(run.at("tokens_per_step"), 128);
  const json end = folder.metrics("a", "end").at(0);
  EXPECT_EQ(end.at("reason"), "done");
  EXPECT_EQ(end.at("exit_code"), 0);
  EXPECT_EQ(json::parse(folder.read("runs/a/config.json")).at("/training/steps"_json_pointer), 10);
}

TEST(Run, more_validation_tokens_than_there_are_means_all_and_is_said) {
  const Workspace folder;
  folder.write_data();
  const Outcome outcome = folder.train("a", {{"training", {{"steps", 2}}}, {"validation", {{"tokens", 5000}}}});
  EXPECT_TRUE(contains(outcome.err, "holds 1499")) << outcome.err;
  EXPECT_EQ(folder.metrics("a", "validation").back().at("val_tokens"), 1499);
}

TEST(Run, in_micro_batches_has_the_losses_of_whole_batches) {
  const Workspace folder;
  folder.write_data();
  const std::pair<const char*, json> optimizers[] = {{"low_rank_muon", matrices({{"type", "low_rank_muon"}})},
                                                     {"muon", matrices({{"type", "muon"}, {"rank", nullptr}})},
                                                     {"adamw", matrices({{"type", "adamw"}, {"rank", nullptr}})}};
  for (const auto& [name, settings] : optimizers) {
    SCOPED_TRACE(name);
    json patch = settings;
    patch["training"] = {{"steps", 10}};
    folder.train(std::string(name) + "8", patch);
    patch["training"]["micro_batch"] = 2;
    const Outcome outcome = folder.train(std::string(name) + "2", patch);
    EXPECT_TRUE(contains(outcome.out, "8 x 16 tokens, micro-batch 2")) << outcome.out;
    EXPECT_LT(largest_difference(folder.losses(std::string(name) + "8"), folder.losses(std::string(name) + "2")), 5e-6);
  }
}

TEST(Run, recomputing_blocks_changes_nothing) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"model", {{"layers", 2}}}});
  folder.train("b", {{"model", {{"layers", 2}}}, {"training", {{"recompute", "block"}}}});
  EXPECT_EQ(folder.losses("a"), folder.losses("b"));
  EXPECT_TRUE(weights_of(folder, "a") == weights_of(folder, "b"));
}

TEST(Run, gradient_clip_limits_the_update_and_0_never_does) {
  const Workspace folder;
  folder.write_data();
  json patch = {{"optimizer",
                 {{"matrices", {{"type", "sgd"}, {"rank", nullptr}, {"lr", 0.1}}},
                  {"embeddings", {{"type", "sgd"}, {"lr", 0.1}}},
                  {"vectors", {{"type", "sgd"}, {"lr", 0.1}}}}}};
  const auto train = [&](const std::string& name, double clip) {
    patch["training"]["gradient_clip"] = clip;
    folder.train(name, patch);
    for (const json& step : folder.metrics(name)) {
      EXPECT_EQ(step.at("clipped"), clip > 0 && step.at("grad_norm").get<double>() > clip) << step;
    }
    return folder.losses(name);
  };
  const auto never = train("never", 0);
  EXPECT_EQ(train("high", 1e9), never);
  const auto low = train("low", 1e-5);
  // The weights hardly move: 20 steps of a length of at most 1e-5 / (1 - momentum).
  EXPECT_LT(std::abs(low.back() - low.front()), 0.05);
  EXPECT_GT(std::abs(never.back() - never.front()), 0.5);
}

TEST(Run, a_rank_of_the_whole_matrix_is_full_orthogonalization_and_said_once) {
  const Workspace folder;
  folder.write_data();
  for (const int rank : {32, 1000}) {
    SCOPED_TRACE(rank);
    const std::string name = "rank" + std::to_string(rank);
    const Outcome outcome = folder.train(name, matrices({{"rank", rank}}));
    EXPECT_EQ(count_of(outcome.out + outcome.err, "orthogonalized fully"), 1U) << outcome.out;
  }
  folder.train("muon", matrices({{"type", "muon"}, {"rank", nullptr}}));
  EXPECT_EQ(folder.losses("rank32"), folder.losses("muon"));
  EXPECT_EQ(folder.losses("rank1000"), folder.losses("muon"));
  const Outcome lower = folder.train("rank31", matrices({{"rank", 31}}));
  EXPECT_FALSE(contains(lower.out, "orthogonalized fully")) << lower.out;
  EXPECT_NE(folder.losses("rank31"), folder.losses("muon"));
}

TEST(Run, a_loss_spike_is_skipped_where_that_is_asked_for) {
  // Without shuffling: the language for 140 steps, then one batch of noise, then the language.
  const Workspace folder;
  folder.write_data();
  fs::remove(folder / "data/train_1.bin");
  std::vector<int> tokens = tiny_language(150 * 128 + 1, 5);
  for (int i = 140 * 128; i < 141 * 128; ++i) tokens[static_cast<std::size_t>(i)] = (i * 7919) % 251;
  folder.write("data/train_0.bin", shard(tokens));
  json patch = {{"data", {{"shuffle", false}}}, {"training", {{"steps", 145}, {"skip_loss_spikes", 3}}}};
  const Outcome outcome = folder.train("a", patch);
  std::vector<int> skipped;
  for (const json& step : folder.metrics("a")) {
    if (step.at("skipped").get<bool>()) skipped.push_back(step.at("step"));
  }
  EXPECT_EQ(skipped, std::vector<int>{141});
  EXPECT_EQ(count_of(outcome.err, "training.skip_loss_spikes"), 1U) << outcome.err;
  patch["training"]["skip_loss_spikes"] = 0;
  const Outcome never = folder.train("b", patch);
  EXPECT_EQ(never.err, "");
  EXPECT_NE(folder.losses("a"), folder.losses("b"));
}

TEST(Run, losses_that_stay_high_are_spikes_for_a_while_only) {
  // The language for 140 steps, then noise: of a window of 128, more than a tenth must be high before 3 deviations
  // reach that far.
  const Workspace folder;
  folder.write_data();
  fs::remove(folder / "data/train_1.bin");
  std::vector<int> tokens = tiny_language(170 * 128 + 1, 5);
  for (int i = 140 * 128; i < 170 * 128; ++i) tokens[static_cast<std::size_t>(i)] = (i * 7919) % 251;
  folder.write("data/train_0.bin", shard(tokens));
  folder.train("a", {{"data", {{"shuffle", false}}}, {"training", {{"steps", 165}, {"skip_loss_spikes", 3}}}});
  std::vector<int> skipped;
  for (const json& step : folder.metrics("a")) {
    if (step.at("skipped").get<bool>()) skipped.push_back(step.at("step"));
  }
  ASSERT_FALSE(skipped.empty());
  EXPECT_EQ(skipped.front(), 141);
  EXPECT_LT(skipped.back(), 160);
}

// Numerical failure ---------------------------------------------------------------------------------------------------

TEST(Overflow, of_the_loss_stops_the_run_with_4_and_without_a_checkpoint_after_it) {
  const Workspace folder;
  folder.write_data();
  for (const char* type : {"adamw", "sgd", "muon", "low_rank_muon", "msgd"}) {
    SCOPED_TRACE(type);
    json patch = matrices({{"type", type}, {"lr", 1e5}});
    if (std::string(type) != "low_rank_muon") patch["optimizer"]["matrices"]["rank"] = nullptr;
    patch["checkpoint"] = {{"every", 1}, {"keep", 0}};
    const Outcome outcome = folder.train(type, patch, {}, static_cast<int>(Exit::numerical));
    expect_refused(outcome, Exit::numerical, {"not finite at step", "Lower the learning rate"});
    EXPECT_FALSE(contains(outcome.out + outcome.err, "-nan")) << outcome.out << outcome.err;
    const auto steps = folder.metrics(type);
    const auto last = steps.back().at("step").get<int>();
    EXPECT_LT(last, 20);
    EXPECT_EQ(folder.checkpoints(type).size(), static_cast<std::size_t>(last)) << "one for each step before";
    EXPECT_EQ(folder.metrics(type, "end").back().at("exit_code"), 4);
    EXPECT_EQ(folder.metrics(type, "end").back().at("step"), last - 1) << "the last update that was made";
    // What is kept can be gone on from: what was not finite may be the newest one's loss, but no weight.
    EXPECT_TRUE(folder.eval(std::string("runs/") + type).contains("loss"));
    expect_finite_weights(folder, type);
  }
}

TEST(Overflow, of_the_last_update_leaves_no_checkpoint_either) {
  const Workspace folder;
  folder.write_data();
  json patch = matrices({{"type", "adamw"}, {"rank", nullptr}, {"lr", 3e38}, {"weight_decay", 1e3}});
  patch["training"] = {{"steps", 1}};
  const Outcome validated = folder.train("a", patch, {}, static_cast<int>(Exit::numerical));
  expect_refused(validated, Exit::numerical, {"validation loss is not finite at step 1", "There is no checkpoint yet"});
  patch["data"]["validation"] = "";
  const Outcome blind = folder.train("b", patch, {}, static_cast<int>(Exit::numerical));
  expect_refused(blind, Exit::numerical, {"weights", "not finite", "There is no checkpoint yet"});
  EXPECT_TRUE(folder.checkpoints("a").empty());
  EXPECT_TRUE(folder.checkpoints("b").empty());
}

// Generate, init-from -------------------------------------------------------------------------------------------------

TEST(InitFrom, starts_from_the_same_weights_with_a_fresh_optimizer) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  const auto source = contents(folder / "runs/a");
  const json patch = {{"seed", 7}, {"training", {{"steps", 3}}}};
  folder.train("b", patch, {"--init-from", "runs/a"});
  const auto validation = folder.metrics("b", "validation");
  EXPECT_EQ(validation.front().at("step"), 0);
  EXPECT_DOUBLE_EQ(validation.front().at("val_loss"), folder.eval("runs/a").at("loss"));
  EXPECT_EQ(folder.losses("b").size(), 3U);
  EXPECT_EQ(contents(folder / "runs/a"), source);
  // Where the source has no optimizer state the run is the same.
  fs::create_directories(folder / "weights");
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::copy(folder / "runs/a/checkpoints/latest" / name, folder / "weights");
  }
  folder.train("c", patch, {"--init-from", "weights"});
  EXPECT_EQ(folder.losses("c"), folder.losses("b"));
}

TEST(InitFrom, with_other_settings_of_the_same_tensors_says_so) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 2}}}});
  const Outcome outcome = folder.train("b", {{"training", {{"steps", 2}}}, {"model", {{"attention_window", 8}}}},
                                       {"--init-from", "runs/a"});
  EXPECT_TRUE(contains(outcome.err, "attention_window is 0 there and 8 here")) << outcome.err;
}

TEST(Generate, is_reproducible_by_its_seed) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 60}}}});
  const auto generate = [&](const Arguments& more) {
    Arguments arguments{"generate", "runs/a", "--prompt", "the ", "--tokens", "40", "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = folder.run(arguments);
    expect_ended(outcome, 0);
    EXPECT_TRUE(outcome.out.starts_with("the ")) << outcome.out;
    return outcome.out;
  };
  EXPECT_EQ(generate({"--seed", "1"}), generate({"--seed", "1"}));
  EXPECT_NE(generate({"--seed", "1"}), generate({"--seed", "2"}));
  const std::string greedy = generate({"--temperature", "0", "--seed", "1"});
  EXPECT_EQ(greedy, generate({"--temperature", "0", "--seed", "2"}));
  EXPECT_EQ(greedy, generate({"--top-k", "1", "--seed", "3"}));
  EXPECT_NE(greedy, generate({"--temperature", "2", "--top-k", "0", "--seed", "1"}));
}

TEST(Generate, from_ids_says_what_it_says_from_their_text) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  const auto generate = [&](const Arguments& prompt) {
    Arguments arguments{"generate", "runs/a", "--tokens", "20", "--threads", "1"};
    arguments.insert(arguments.end(), prompt.begin(), prompt.end());
    const Outcome outcome = folder.run(arguments);
    expect_ended(outcome, 0);
    return outcome.out;
  };
  EXPECT_EQ(generate({"--prompt", "the"}), "the" + generate({"--prompt-ids", "116,104,101"}));
  EXPECT_EQ(generate({}), generate({"--prompt-ids", "256"})) << "without a prompt: the beginning of a document";
}

}  // namespace
}  // namespace polaron::test

// A run that was stopped, however rudely, and resumed ends like one that was not: to the bit.
#include <signal.h>

#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

// 20 steps straight; 20 steps killed after the eleventh was reported, resumed from the checkpoint of the tenth.
void expect_kill_and_resume_change_nothing(const json& patch) {
  const Workspace folder;
  folder.write_data();
  folder.train("straight", patch);
  folder.write_config("killed", patch);
  {
    Process process(folder.path(), {"train", "killed.json"}, paced());
    ASSERT_TRUE(process.read_until("step 11/20"));
    process.send(SIGKILL);
    const Outcome outcome = process.finish();
    ASSERT_EQ(outcome.signal, SIGKILL) << "it ended before it was killed\n" << outcome.out;
  }
  const auto killed = folder.metrics("killed");
  EXPECT_GT(killed.size(), 10U);
  EXPECT_EQ(folder.checkpoints("killed"), (std::vector<std::string>{"latest", "step-00000010"}));

  const Outcome resumed = folder.run({"train", "killed.json", "--resume"});
  expect_ended(resumed, 0);
  EXPECT_TRUE(contains(resumed.out, "resumed at step 10")) << resumed.out;
  EXPECT_EQ(resumed.err, "");
  expect_same_bits(folder, "straight", "killed");
  expect_each_step_once(folder, "killed", 20);
  EXPECT_EQ(folder.losses("killed"), folder.losses("straight"));
  EXPECT_EQ(folder.metrics("killed", "validation").back().at("val_loss"),
            folder.metrics("straight", "validation").back().at("val_loss"));
}

TEST(Resume, after_kill_9_low_rank_muon_ends_at_the_same_bits) {
  expect_kill_and_resume_change_nothing({{"optimizer", {{"matrices", {{"momentum_warmup_steps", 15}}}}},
                                         {"schedule", {{"type", "wsd"}, {"warmup_steps", 3}}}});
}

TEST(Resume, after_kill_9_low_rank_muon_with_a_gaussian_sketch_ends_at_the_same_bits) {
  expect_kill_and_resume_change_nothing(
      {{"model", {{"preset", "llama"}, {"kv_heads", 2}, {"document_mask", true}}},
       {"optimizer", {{"matrices", {{"sketch", "gaussian"}, {"rank_lr_compensation", "sqrt"}}}}},
       {"training", {{"micro_batch", 2}, {"recompute", "block"}}}});
}

TEST(Resume, after_kill_9_muon_ends_at_the_same_bits) {
  expect_kill_and_resume_change_nothing({{"optimizer", {{"matrices", {{"type", "muon"}, {"rank", nullptr}}}}}});
}

TEST(Resume, after_kill_9_with_what_is_left_to_the_device_ends_at_the_same_bits) {
  expect_kill_and_resume_change_nothing({{"training", {{"micro_batch", "auto"}}}, {"deterministic", false}});
}

TEST(Resume, after_kill_9_adamw_ends_at_the_same_bits) {
  expect_kill_and_resume_change_nothing(
      {{"optimizer", {{"matrices", {{"type", "adamw"}, {"rank", nullptr}, {"lr", 0.003}}}}}});
}

TEST(Resume, after_kill_9_sgd_ends_at_the_same_bits) {
  expect_kill_and_resume_change_nothing(
      {{"optimizer",
        {{"matrices", {{"type", "sgd"}, {"rank", nullptr}}}, {"embeddings", {{"type", "sgd"}, {"nesterov", true}}}}},
       {"training", {{"gradient_clip", 0}}}});
}

TEST(Resume, over_several_epochs_goes_on_with_the_same_data) {
  // 11,000 tokens are 85 batches of 8 x 16.
  const Workspace folder;
  folder.write_data();
  const json patch = {{"training", {{"steps", 200}}}, {"checkpoint", {{"every", 90}}}};
  folder.train("straight", patch);
  folder.write_config("killed", patch);
  Process process(folder.path(), {"train", "killed.json"}, paced());
  ASSERT_TRUE(process.read_until("step 100/200"));
  process.send(SIGKILL);
  ASSERT_EQ(process.finish().signal, SIGKILL);
  expect_ended(folder.run({"train", "killed.json", "--resume"}), 0);
  expect_same_bits(folder, "straight", "killed");
  expect_each_step_once(folder, "killed", 200);
}

TEST(Resume, from_an_older_checkpoint_goes_on_from_there) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  const auto losses = folder.losses("a");
  const std::string bits = folder.read("runs/a/checkpoints/latest/model.safetensors");
  expect_ended(folder.run({"train", "a.json", "--resume", "runs/a/checkpoints/step-00000010"}), 0);
  EXPECT_EQ(folder.losses("a"), losses);
  EXPECT_EQ(folder.read("runs/a/checkpoints/latest/model.safetensors"), bits);
  expect_each_step_once(folder, "a", 20);
}

TEST(Resume, from_an_older_checkpoint_and_killed_goes_on_from_there_again) {
  const Workspace folder;
  folder.write_data();
  const json patch = {{"training", {{"steps", 12}}}, {"checkpoint", {{"every", 4}, {"keep", 2}}}};
  folder.train("straight", patch);
  json kept = patch;
  kept["checkpoint"]["keep"] = 0;
  folder.train("a", kept);
  folder.write_config("a", patch);
  const std::string fourth = "runs/a/checkpoints/step-00000004";
  {
    // Long enough that what it prints ahead of the reader is neither a checkpoint nor the end.
    Process process(
        folder.path(),
        {"train", "a.json", "--resume", fourth, "--set", "training.steps=40", "--set", "checkpoint.every=20"}, paced());
    ASSERT_TRUE(process.read_until("step  6/40"));
    process.send(SIGKILL);
    const Outcome outcome = process.finish();
    ASSERT_EQ(outcome.signal, SIGKILL) << "it ended before it was killed\n" << outcome.out;
    EXPECT_TRUE(contains(outcome.out, "the checkpoints of later steps, up to step-00000012")) << outcome.out;
  }
  EXPECT_EQ(folder.checkpoints("a"),
            (std::vector<std::string>{"latest", "step-00000004", "step-00000008", "step-00000012"}));

  const Outcome resumed = folder.run({"train", "a.json", "--resume", "--set", "training.steps=7"});
  expect_ended(resumed, 0);
  EXPECT_TRUE(contains(resumed.out, "resumed at step 4")) << resumed.out;
  expect_each_step_once(folder, "a", 7);
  EXPECT_EQ(folder.checkpoints("a"), (std::vector<std::string>{"latest", "step-00000004", "step-00000007"}));

  expect_ended(folder.run({"train", "a.json", "--resume", fourth}), 0);
  expect_same_bits(folder, "straight", "a");
  expect_each_step_once(folder, "a", 12);
  EXPECT_EQ(folder.checkpoints("a"), (std::vector<std::string>{"latest", "step-00000008", "step-00000012"}));
}

TEST(Resume, automatic_goes_on_where_there_is_a_checkpoint_and_begins_where_there_is_none) {
  const Workspace folder;
  folder.write_data();
  const json patch = {{"training", {{"steps", 6}}}, {"checkpoint", {{"every", 4}}}};
  folder.train("straight", patch);
  folder.write_config("a", patch);
  folder.write("runs/a/metrics.jsonl", "of a run that was stopped before its first checkpoint\n");
  expect_refused(folder.run({"train", "a.json"}), Exit::usage, {"no checkpoint", "remove it"});
  expect_ended(folder.run({"train", "a.json", "--auto-resume"}), 0);
  EXPECT_EQ(folder.read("runs/a/metrics.jsonl.stopped"), "of a run that was stopped before its first checkpoint\n");
  expect_same_bits(folder, "straight", "a");
  expect_each_step_once(folder, "a", 6);

  // Its own checkpoint comes before the one that it once began from.
  fs::remove_all(folder / "runs/a/checkpoints/step-00000006");
  fs::remove(folder / "runs/a/checkpoints/latest");
  const Outcome outcome = folder.run({"train", "a.json", "--auto-resume", "--resume", "runs/straight"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.out, "resumed at step 4")) << outcome.out;
  expect_same_bits(folder, "straight", "a");
  expect_each_step_once(folder, "a", 6);

  // Without one it begins as it would have the first time.
  folder.write_config("b", {{"training", {{"steps", 8}}}, {"checkpoint", {{"every", 4}}}});
  const Outcome other = folder.run({"train", "b.json", "--auto-resume", "--resume", "runs/straight"});
  expect_ended(other, 0);
  EXPECT_TRUE(contains(other.out, "resumed at step 6")) << other.out;
}

TEST(Resume, with_other_settings_says_which) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 5}}}});
  const Outcome outcome =
      folder.run({"train", "a.json", "--set", "training.steps=6", "--set", "optimizer.matrices.rank=\"1/4\"", "--set",
                  "optimizer.matrices.lr=0.5", "--set", "sample.every=3", "--resume"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.err, R"(warning: --resume: optimizer.matrices.rank was 8, is now "1/4")"))
      << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "--resume: optimizer.matrices.lr was ")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "--resume: training.steps was 5, is now 6")) << outcome.err;
  EXPECT_EQ(count_of(outcome.err, "warning: "), 3U) << outcome.err;
}

TEST(Resume, with_other_data_says_so) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 5}}}});
  folder.write("data/train_2.bin", shard(tiny_language(3000, 7)));
  const Outcome outcome = folder.run({"train", "a.json", "--set", "training.steps=6", "--resume"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.err, "warning: the data")) << outcome.err;
}

TEST(Resume, without_the_former_optimizer_s_state_says_what_is_dropped) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 5}}}});
  const Outcome outcome =
      folder.run({"train", "a.json", "--set", "training.steps=6", "--set", "optimizer.matrices.type=msgd", "--resume"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.err, "optimizer.safetensors holds state that")) << outcome.err;
}

TEST(Resume, of_a_finished_run_with_other_validation_data_validates_again) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 4}}}, {"validation", {{"tokens", 700}}}});
  const double before = folder.metrics("a", "end").back().at("val_loss");
  folder.write("data/other_0.bin", shard(tiny_language(2000, 77)));
  expect_ended(folder.run({"train", "a.json", "--set", "data.validation=data/other_*.bin", "--resume"}), 0);
  EXPECT_EQ(folder.metrics("a", "validation").size(), 3U);  // at steps 0 and 4, and of the other data
  EXPECT_NE(folder.metrics("a", "end").back().at("val_loss").get<double>(), before);
}

TEST(Resume, of_a_finished_run_with_another_mask_validates_again) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 4}}}, {"validation", {{"tokens", 700}}}});
  expect_ended(folder.run({"train", "a.json", "--set", "model.document_mask=true", "--resume"}), 0);
  EXPECT_EQ(folder.metrics("a", "validation").size(), 3U);
}

TEST(Resume, that_is_refused_leaves_latest_where_it_points) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  const Outcome outcome = folder.run({"train", "a.json", "--resume", "runs/a/checkpoints/step-00000010", "--set",
                                      "diagnostics.spectra.every=5", "--set", "diagnostics.spectra.matrices=typo*"});
  expect_refused(outcome, Exit::usage, {"typo*"});
  EXPECT_EQ(fs::read_symlink(folder / "runs/a/checkpoints/latest"), "step-00000020");
}

TEST(Resume, of_another_run_leaves_a_checkpoint_of_its_own) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 4}}}});
  folder.write_config("b", {{"training", {{"steps", 4}}}});
  expect_ended(folder.run({"train", "b.json", "--resume", "runs/a"}), 0);
  EXPECT_EQ(folder.checkpoints("b"), (std::vector<std::string>{"latest", "step-00000004"}));
  expect_ended(folder.run({"train", "b.json", "--resume", "--set", "training.steps=6"}), 0);
}

TEST(Resume, with_another_batch_counts_the_tokens_that_were_trained_on) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 4}}}});
  expect_ended(folder.run({"train", "a.json", "--resume", "--set", "training.steps=6", "--set", "training.batch=16"}),
               0);
  std::vector<std::int64_t> tokens;
  for (const json& step : folder.metrics("a")) tokens.push_back(step.at("tokens"));
  EXPECT_EQ(tokens, (std::vector<std::int64_t>{128, 256, 384, 512, 768, 1024}));
  expect_ended(folder.run({"train", "a.json", "--resume", "--set", "training.steps=7"}), 0);
  EXPECT_EQ(folder.metrics("a").back().at("tokens"), 1024 + 128);
}

TEST(Keep, bounds_how_many_checkpoints_stay_and_latest_points_at_the_newest) {
  const Workspace folder;
  folder.write_data();
  for (const auto& [keep, expected] : std::vector<std::pair<int, std::vector<std::string>>>{
           {1, {"latest", "step-00000011"}},
           {2, {"latest", "step-00000010", "step-00000011"}},
           {0, {"latest", "step-00000005", "step-00000010", "step-00000011"}}}) {
    const std::string name = "keep" + std::to_string(keep);
    folder.train(name, {{"training", {{"steps", 11}}}, {"checkpoint", {{"every", 5}, {"keep", keep}}}});
    EXPECT_EQ(folder.checkpoints(name), expected);
    EXPECT_EQ(fs::read_symlink(folder / "runs" / name / "checkpoints/latest"), "step-00000011");
  }
}

}  // namespace
}  // namespace polaron::test

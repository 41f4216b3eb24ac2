// Signals and --max-time: a run checkpoints, goes on or ends as asked, and what it was stopped in is made up for.
#include <signal.h>
#include <time.h>

#include "io/checksum.h"
#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

class StopSignal : public testing::TestWithParam<int> {};

TEST_P(StopSignal, checkpoints_the_last_complete_step_and_a_resumed_run_ends_at_the_same_bits) {
  const Workspace folder;
  folder.write_data();
  const json patch = {{"training", {{"steps", 40}, {"micro_batch", 2}}}, {"checkpoint", {{"every", 0}}}};
  folder.train("straight", patch);
  folder.write_config("stopped", patch);
  Process process(folder.path(), {"train", "stopped.json"}, paced());
  ASSERT_TRUE(process.read_until("step  5/40"));
  process.send(GetParam());
  const Outcome outcome = process.finish();
  expect_ended(outcome, static_cast<int>(Exit::interrupted));
  EXPECT_TRUE(contains(outcome.out, "go on with --resume")) << outcome.out;

  const auto steps = folder.metrics("stopped");
  const auto last = static_cast<std::int64_t>(steps.size());
  EXPECT_LT(last, 40);
  const json end = folder.metrics("stopped", "end").back();
  EXPECT_EQ(end.at("reason"), GetParam() == SIGINT ? "SIGINT" : "SIGTERM");
  EXPECT_EQ(end.at("exit_code"), 6);
  EXPECT_EQ(end.at("step"), last);
  const json state = json::parse(folder.read("runs/stopped/checkpoints/latest/trainer.json"));
  EXPECT_EQ(state.at("step"), last);

  expect_ended(folder.run({"train", "stopped.json", "--resume"}), 0);
  expect_same_bits(folder, "straight", "stopped");
  expect_each_step_once(folder, "stopped", 40);
}

INSTANTIATE_TEST_SUITE_P(Both, StopSignal, testing::Values(SIGTERM, SIGINT),
                         [](const auto& test) { return test.param == SIGTERM ? "SIGTERM" : "SIGINT"; });

TEST(Signals, cut_a_validation_short_and_the_resumed_run_makes_it) {
  const Workspace folder;
  folder.write_data();
  folder.write("data/validation_0.bin", shard(std::vector<int>(4'000'000, 'a')));  // takes seconds
  folder.write_config("a",
                      {{"training", {{"steps", 12}}}, {"validation", {{"every", 5}}}, {"checkpoint", {{"every", 4}}}});
  const Arguments some = {"train", "a.json", "--set", "validation.tokens=700"};
  expect_ended(folder.run({some[0], some[1], some[2], some[3], "--set", "training.steps=4"}), 0);
  const auto validated = [&] {
    std::vector<int> steps;
    for (const json& record : folder.metrics("a", "validation")) steps.push_back(record.at("step"));
    return steps;
  };

  Process process(folder.path(), {"train", "a.json", "--resume"});
  ASSERT_TRUE(process.read_until("step  5/12"));
  process.send(SIGTERM);
  expect_ended(process.finish(), static_cast<int>(Exit::interrupted));
  EXPECT_EQ(validated(), (std::vector<int>{0, 4}));
  EXPECT_EQ(json::parse(folder.read("runs/a/checkpoints/latest/trainer.json")).at("step"), 5);
  const json end = folder.metrics("a", "end").back();
  EXPECT_EQ(end.at("step"), 5);
  EXPECT_EQ(end.at("reason"), "SIGTERM");

  expect_ended(folder.run({some[0], some[1], some[2], some[3], "--resume"}), 0);
  EXPECT_EQ(validated(), (std::vector<int>{0, 4, 5, 10, 12}));
  expect_each_step_once(folder, "a", 12);
}

TEST(Signals, cut_the_last_validation_short_and_the_resumed_run_makes_it) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 4}}}, {"validation", {{"tokens", 700}}}});
  folder.write("data/validation_0.bin", shard(std::vector<int>(4'000'000, 'a')));  // takes seconds
  folder.write_config("a", {{"training", {{"steps", 5}}}});
  Process process(folder.path(), {"train", "a.json", "--resume"});
  ASSERT_TRUE(process.read_until("step 5/5"));
  process.send(SIGTERM);
  expect_ended(process.finish(), static_cast<int>(Exit::interrupted));
  EXPECT_EQ(folder.metrics("a", "validation").size(), 2U);
  const Arguments again = {"train", "a.json", "--set", "validation.tokens=700", "--resume"};
  for (int time = 0; time < 2; ++time) {  // the second has nothing to do and says what is known
    expect_ended(folder.run(again), 0);
    const auto validations = folder.metrics("a", "validation");
    ASSERT_EQ(validations.size(), 3U);
    EXPECT_EQ(validations.back().at("step"), 5);
    const json end = folder.metrics("a", "end").back();
    EXPECT_EQ(end.at("reason"), "done");
    EXPECT_EQ(end.at("val_loss"), validations.back().at("val_loss"));
    EXPECT_EQ(end.at("perplexity"), validations.back().at("perplexity"));
  }
}

TEST(Signals, usr1_before_training_begins_is_harmless) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"training", {{"steps", 5}}}});
  // A large file of the user's that is verified with the others: the time in which the signal comes.
  const fs::path checkpoint = folder / "runs/a/checkpoints/step-00000005";
  folder.write("runs/a/checkpoints/step-00000005/notes.bin", "");
  fs::resize_file(checkpoint / "notes.bin", std::uintmax_t{1} << 29U);
  fs::remove(checkpoint / manifest_name);
  write_manifest(checkpoint);
  Process process(folder.path(), {"train", "a.json", "--set", "training.steps=8", "--resume"});
  const fs::path open_files = "/proc/" + std::to_string(process.id()) + "/fd";
  bool verifying = false, running = true;
  while (running && !verifying) {
    running = false;
    std::error_code gone, ignored;
    for (fs::directory_iterator file(open_files, gone), end; !gone && file != end; file.increment(gone)) {
      running = true;
      verifying = verifying || fs::read_symlink(file->path(), ignored).filename() == "notes.bin";
    }
  }
  ASSERT_TRUE(verifying);
  process.send(SIGUSR1);
  expect_ended(process.finish(), 0);
  EXPECT_EQ(folder.losses("a").size(), 8U);
}

TEST(Signals, a_second_interrupt_exits_at_once) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a",
                      {{"sample", {{"every", 1}, {"tokens", 1'000'000}}}});  // many seconds, which no signal shortens
  Process process(folder.path(), {"train", "a.json"});
  ASSERT_TRUE(process.read_until("step  1/20"));
  process.send(SIGINT);
  const struct timespec pause { 0, 200'000'000 };  // at once, it would count as the same interrupt
  ::nanosleep(&pause, nullptr);
  process.send(SIGINT);
  const Outcome outcome = process.finish();
  expect_ended(outcome, 130);
  EXPECT_TRUE(contains(outcome.err, "second signal")) << outcome.err;
  EXPECT_TRUE(folder.checkpoints("a").empty());
}

TEST(Signals, usr1_checkpoints_and_goes_on) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", {{"training", {{"steps", 40}}}, {"checkpoint", {{"every", 0}}}});
  Process process(folder.path(), {"train", "a.json"}, paced());
  ASSERT_TRUE(process.read_until("step  5/40"));
  process.send(SIGUSR1);
  expect_ended(process.finish(), 0);
  const auto checkpoints = folder.metrics("a", "checkpoint");
  ASSERT_EQ(checkpoints.size(), 2U);
  EXPECT_GE(checkpoints[0].at("step"), 5);
  EXPECT_LT(checkpoints[0].at("step"), 40);
  EXPECT_EQ(checkpoints[1].at("step"), 40);
  EXPECT_TRUE(fs::exists(folder / checkpoints[0].at("path").get<std::string>() / "model.safetensors"));
  expect_each_step_once(folder, "a", 40);
}

TEST(MaxTime, ends_a_run_like_a_signal) {
  const Workspace folder;
  folder.write_data();
  const Outcome outcome = folder.train("a", {{"training", {{"steps", 1000000}}}, {"checkpoint", {{"every", 0}}}},
                                       {"--max-time", "1s"}, static_cast<int>(Exit::interrupted));
  EXPECT_TRUE(contains(outcome.out, "(max-time); go on with --resume")) << outcome.out;
  const auto steps = static_cast<std::int64_t>(folder.metrics("a").size());
  expect_each_step_once(folder, "a", steps);
  EXPECT_EQ(folder.metrics("a", "end").back().at("reason"), "max-time");
  const json state = json::parse(folder.read("runs/a/checkpoints/latest/trainer.json"));
  EXPECT_EQ(state.at("step"), steps);
}

}  // namespace
}  // namespace polaron::test

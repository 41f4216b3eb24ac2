// What eval measures, and on what.
#include <cmath>

#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

TEST(Eval, equals_the_run_s_own_last_validation) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  folder.train("b", {{"validation", {{"tokens", 333}}}});
  const json all = folder.eval("runs/a");
  EXPECT_DOUBLE_EQ(all.at("loss"), folder.metrics("a", "validation").back().at("val_loss"));
  EXPECT_EQ(all.at("tokens"), 1499);
  EXPECT_DOUBLE_EQ(all.at("perplexity").get<double>(), std::exp(all.at("loss").get<double>()));
  const json some = folder.eval("runs/b", {"--tokens", "333"});
  EXPECT_DOUBLE_EQ(some.at("loss"), folder.metrics("b", "validation").back().at("val_loss"));
  EXPECT_EQ(some.at("tokens"), 333);
  const Outcome sentence = folder.run({"eval", "runs/a", "--data", "data/validation_*.bin", "--threads", "1"});
  expect_ended(sentence, 0);
  EXPECT_TRUE(contains(sentence.out, "over 1499 tokens in windows of 16")) << sentence.out;
}

TEST(Eval, does_not_depend_on_the_micro_batch) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  const double loss = folder.eval("runs/a", {"--micro-batch", "1"}).at("loss");
  for (const char* micro_batch : {"3", "8", "1000000000000"}) {
    const json result = folder.eval("runs/a", {"--micro-batch", micro_batch});
    EXPECT_NEAR(result.at("loss").get<double>(), loss, 1e-6) << micro_batch;
    EXPECT_EQ(result.at("tokens"), 1499);
  }
}

// Without --data, with --json.
struct Evaluated {
  json result;
  std::string notes;  // on standard error
};
Evaluated evaluated(const Workspace& folder, const std::string& run, const Arguments& more = {}) {
  Arguments arguments{"eval", run, "--json", "--threads", "1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome outcome = folder.run(arguments);
  expect_ended(outcome, 0);
  return {json::parse(outcome.out, nullptr, false), outcome.err};
}

TEST(Eval, without_data_repeats_the_run_s_own_validation) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  folder.train("b", {{"validation", {{"tokens", 333}}}});
  const Evaluated all = evaluated(folder, "runs/a");
  EXPECT_DOUBLE_EQ(all.result.at("loss"), folder.metrics("a", "validation").back().at("val_loss"));
  EXPECT_EQ(all.result.at("tokens"), 1499);
  EXPECT_EQ(all.result.at("data"), "data/validation_*.bin");
  EXPECT_EQ(all.notes, "Evaluating on the run's data.validation, data/validation_*.bin.\n");
  const Evaluated some = evaluated(folder, "runs/b");
  EXPECT_DOUBLE_EQ(some.result.at("loss"), folder.metrics("b", "validation").back().at("val_loss"));
  EXPECT_EQ(some.result.at("tokens"), 333);
  EXPECT_EQ(some.notes,
            "Evaluating on the run's data.validation, data/validation_*.bin, and its validation.tokens, 333.\n");
}

TEST(Eval, takes_data_and_tokens_over_the_run_s_own) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"validation", {{"tokens", 333}}}});
  EXPECT_EQ(evaluated(folder, "runs/a", {"--tokens", "100"}).result.at("tokens"), 100);
  EXPECT_EQ(evaluated(folder, "runs/a", {"--tokens", "0"}).result.at("tokens"), 1499);
  const Evaluated other = evaluated(folder, "runs/a", {"--data", "data/train_1.bin"});
  EXPECT_EQ(other.result.at("tokens"), 4999) << "of data that is not the run's, all";
  EXPECT_EQ(other.result.at("data"), "data/train_1.bin");
  EXPECT_EQ(other.notes, "");
}

TEST(Eval, of_more_tokens_than_there_are_evaluates_all_and_says_so) {
  const Workspace folder;
  folder.write_data();
  const std::string note = " is 1500, but data/validation_*.bin holds 1499: using all of them.\n";
  const Outcome trained = folder.train("a", {{"validation", {{"tokens", 1500}}}});
  EXPECT_TRUE(contains(trained.err, "warning: validation.tokens" + note)) << trained.err;
  const std::string pattern = "data/validation_*.bin";
  const Evaluated given = evaluated(folder, "runs/a", {"--data", pattern, "--tokens", "1500"});
  EXPECT_EQ(given.result.at("tokens"), 1499);
  EXPECT_EQ(given.notes, "warning: --tokens" + note);
  EXPECT_EQ(evaluated(folder, "runs/a", {"--data", pattern, "--tokens", "1499"}).notes, "") << "as many as there are";
  const Evaluated own = evaluated(folder, "runs/a");
  EXPECT_EQ(own.result.at("tokens"), 1499);
  EXPECT_TRUE(own.notes.ends_with("\nwarning: validation.tokens" + note)) << own.notes;
}

TEST(Eval, without_data_looks_below_the_current_directory_as_training_does) {
  const Workspace folder;
  folder.write_data();
  folder.train("a");
  fs::create_directories(folder / "elsewhere");
  const Outcome outcome = Process(folder / "elsewhere", {"eval", (folder / "runs/a").string()}).finish();
  expect_refused(outcome, Exit::data, {"the run's data.validation", "'data/validation_*.bin'", "no file matches"});
}

TEST(Eval, of_a_model_that_names_no_data_asks_for_it) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", {{"data", {{"validation", ""}}}});
  expect_refused(folder.run({"eval", "runs/a"}), Exit::usage,
                 {"runs/a/checkpoints/latest", "its run had no data.validation", "--data"});
  fs::create_directories(folder / "weights");
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::copy(folder / "runs/a/checkpoints/latest" / name, folder / "weights");
  }
  expect_refused(folder.run({"eval", "weights"}), Exit::usage, {"weights", "without the config of a run", "--data"});
  EXPECT_EQ(folder.eval("weights").at("tokens"), 1499);
}

}  // namespace
}  // namespace polaron::test

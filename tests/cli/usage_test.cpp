// Command lines and configs that polaron refuses, and the commands that need no data.
#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

struct Refused {
  Arguments arguments;
  std::vector<std::string> words;
};

void expect_usage_errors(const Workspace& folder, const std::vector<Refused>& cases) {
  const auto before = contents(folder.path());
  for (const auto& [arguments, words] : cases) {
    SCOPED_TRACE(json(arguments).dump());
    const Outcome outcome = folder.run(arguments);
    expect_refused(outcome, Exit::usage, words);
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_EQ(contents(folder.path()), before);
}

TEST(CommandLine, what_is_missing_or_unknown_is_named) {
  const Workspace folder;
  folder.write_config("a");
  expect_usage_errors(
      folder, {{{}, {"subcommand is required", "--help"}},
               {{"trian", "a.json"}, {"'trian'", "\"train\"", "\"eval\"", "--help"}},
               {{"train"}, {"config is required", "--help"}},
               {{"train", "a.json", "b.json"}, {"b.json"}},
               {{"train", "a.json", "--fast"}, {"--fast"}},
               {{"train", "a.json", "--device", "gpu"}, {"--device", "gpu", "cuda"}},
               {{"train", "a.json", "--threads", "many"}, {"--threads", "many"}},
               {{"train", "a.json", "--threads", "-1"}, {"--threads", "'-1' is not a number of at least 0"}},
               {{"train", "a.json", "--threads", "5000"}, {"/threads", "from 0 to 4096"}},
               {{"eval", "--data", "x"}, {"checkpoint is required"}},
               {{"eval", "a", "--data", "x", "--tokens", "-5"}, {"--tokens", "'-5' is not a number of at least 0"}},
               {{"eval", "a", "--data", "x", "--micro-batch", "0"}, {"--micro-batch", "at least 1"}},
               {{"generate"}, {"checkpoint is required"}},
               {{"generate", "a", "--temperature", "nan"}, {"--temperature", "'nan'"}},
               {{"plan"}, {"config is required"}},
               {{"plan", "a.json", "--processes", "0"}, {"--processes", "at least 1"}},
               {{"bench"}, {"subcommand is required"}},
               {{"bench", "step"}, {"config is required"}},
               {{"config"}, {"CONFIG, --markdown or --schema is required"}}});
}

TEST(CommandLine, a_bad_set_is_named) {
  const Workspace folder;
  folder.write_config("a");
  expect_usage_errors(folder,
                      {{{"train", "a.json", "--set"}, {"--set", "KEY.PATH=VALUE"}},
                       {{"train", "a.json", "--set", "seed"}, {"--set seed", "expected key.path=value"}},
                       {{"train", "a.json", "--set", "=1"}, {"--set =1", "expected key.path=value"}},
                       {{"train", "a.json", "--set", "modle.width=64"}, {"/modle", "did you mean \"model\"?"}},
                       {{"train", "a.json", "--set", "model.widht=64"}, {"/model/widht", "did you mean \"width\"?"}},
                       {{"train", "a.json", "--set", "training.steps=x"}, {"/training/steps", "\"x\""}},
                       {{"plan", "a.json", "--set", "seed=-1"}, {"/seed", "-1"}}});
}

TEST(CommandLine, a_bad_duration_is_named) {
  const Workspace folder;
  folder.write_config("a");
  for (const char* duration : {"5x", "0", "-5", "1h 30m", "ten"}) {
    expect_usage_errors(folder, {{{"train", "a.json", std::string("--max-time=") + duration}, {"--max-time", "90s"}}});
  }
}

TEST(CommandLine, help_teaches_every_command_by_an_example) {
  const Workspace folder;
  for (const char* command : {"train", "eval", "generate", "plan", "bench"}) {
    SCOPED_TRACE(command);
    const Outcome outcome = folder.run({command, "--help"});
    expect_ended(outcome, 0);
    EXPECT_TRUE(contains(outcome.out, std::string("polaron ") + command)) << outcome.out;
    EXPECT_TRUE(contains(outcome.out, "Example")) << outcome.out;
  }
  const Outcome version = folder.run({"--version"});
  expect_ended(version, 0);
  EXPECT_TRUE(version.out.starts_with("polaron ")) << version.out;
}

TEST(BadConfig, a_file_that_is_missing_or_not_json_is_named) {
  const Workspace folder;
  folder.write("broken.json", "{\n  \"seed\": 1,\n  \"model\": {\n");
  folder.write("text.json", "width = 3\n");
  folder.write("empty.json", "");
  folder.write("child.json", R"({"extends": "parent.json"})");
  expect_usage_errors(folder, {{{"train", "none.json"}, {"none.json", "no such file"}},
                               {{"train", "broken.json"}, {"broken.json:4:1", "not valid JSON"}},
                               {{"train", "text.json"}, {"text.json:1:1", "not valid JSON"}},
                               {{"train", "empty.json"}, {"empty.json", "not valid JSON"}},
                               {{"train", "child.json"}, {"parent.json", "no such file"}},
                               {{"train", "."}, {"directory"}},
                               {{"plan", "none.json"}, {"none.json", "no such file"}}});
}

TEST(BadConfig, what_cannot_be_is_refused_before_anything_is_made) {
  const Workspace folder;
  folder.write_data();
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {R"({"optimiser": {}})", {"/optimiser", "unknown key", "did you mean \"optimizer\"?"}},
      {R"({"optimizer": {"matrices": {"rnak": 8}}})", {"/optimizer/matrices/rnak", "did you mean \"rank\"?"}},
      {R"({"optimizer": {"matrices": {"type": "mouon"}}})", {"/optimizer/matrices/type", "did you mean \"muon\"?"}},
      {R"({"model": {"width": "wide"}})", {"/model/width", "expected an integer", "\"wide\""}},
      {R"({"data": {"shuffle": 1}})", {"/data/shuffle", "expected true or false"}},
      {R"({"training": []})", {"/training", "expected an object", "a list"}},
      {R"({"training": {"steps": 1.5}})", {"/training/steps", "expected an integer", "1.5"}},
      {R"({"model": {"layers": 0}})", {"/model/layers", "from 1 to", "got 0"}},
      {R"({"model": {"width": -32}})", {"/model/width", "from 1 to", "got -32"}},
      {R"({"model": {"heads": 0}})", {"/model/heads", "from 1 to", "got 0"}},
      {R"({"training": {"batch": -8}})", {"/training/batch", "from 1 to", "got -8"}},
      {R"({"training": {"steps": 0}})", {"/training/steps", "from 1 to", "got 0"}},
      {R"({"model": {"context_length": 0}})", {"/model/context_length", "from 1 to", "got 0"}},
      {R"({"optimizer": {"matrices": {"lr": -0.1}}})", {"/optimizer/matrices/lr", "at least 0"}},
      {R"({"optimizer": {"matrices": {"rank": 0}}})", {"/optimizer/matrices/rank", "at least 1"}},
      {R"({"model": {"heads": 5}})", {"/model/width", "32 is not divisible by 5 heads"}},
      {R"({"model": {"kv_heads": 3}})", {"/model/kv_heads", "3 does not divide 4 heads"}},
      {R"({"training": {"micro_batch": 3}})", {"/training/micro_batch", "3 does not divide batch 8"}},
      {R"({"training": {"sequence_length": 17}})", {"/training/sequence_length", "17", "16"}},
      {R"({"model": {"vocabulary": 100}})", {"257 tokens", "model.vocabulary is 100", "raise it to 257"}},
      {R"({"precision": "fp16"})", {"/precision", "fp32"}},
  };
  for (const auto& [patch, words] : cases) {
    SCOPED_TRACE(patch);
    folder.write_config("a", json::parse(patch));
    const auto before = contents(folder.path());
    expect_refused(folder.run({"train", "a.json"}), Exit::usage, words);
    EXPECT_EQ(contents(folder.path()), before);
  }
}

TEST(BadConfig, a_device_that_is_not_there_exits_with_5) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a");
  const auto before = contents(folder.path());
  expect_refused(folder.run({"train", "a.json", "--device", "cuda"}), Exit::device, {"CUDA", "--device cpu"});
  expect_refused(folder.run({"plan", "a.json", "--set", "device=cuda"}), Exit::device, {"CUDA"});
  EXPECT_EQ(contents(folder.path()), before);
}

TEST(BadConfig, a_model_that_does_not_fit_into_memory_exits_with_5_and_names_what_to_lower) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", {{"model", {{"width", 1 << 14}, {"layers", 1000}}}});
  const auto before = contents(folder.path());
  expect_refused(folder.run({"train", "a.json"}), Exit::device, {"memory", "training.micro_batch", "GiB are free"});
  EXPECT_EQ(contents(folder.path()), before);
}

TEST(Plan, accepts_every_config_that_comes_with_polaron) {
  const Workspace folder;  // where none of their data is
  const fs::path configs = POLARON_SOURCE_DIR "/configs";
  std::size_t planned = 0;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(configs)) {
    const fs::path& path = entry.path();
    if (path.extension() != ".json" || path.filename() == "polaron.schema.json") continue;
    if (path.parent_path().filename() == "base") continue;  // for others to extend: without sizes
    for (const char* processes : {"1", "8"}) {
      SCOPED_TRACE(path.lexically_relative(configs).string() + " on " + processes);
      const Outcome outcome = folder.run({"plan", path.string(), "--processes", processes});
      expect_ended(outcome, 0);
      EXPECT_EQ(outcome.err, "");
      std::vector<std::string> headings = {"parameters by role", "memory", "FLOPs a token"};
      if (processes == std::string("8")) headings.push_back("moved through each of 8 processes");
      for (const std::string& heading : headings) EXPECT_TRUE(contains(outcome.out, heading)) << outcome.out;
      ++planned;
    }
  }
  EXPECT_GE(planned, 2 * 34U);
  EXPECT_TRUE(contents(folder.path()).empty());
}

TEST(Plan, says_which_vocabulary_it_assumes_where_there_is_no_data_yet) {
  const Workspace folder;
  folder.write_config("a");
  const Outcome without = folder.run({"plan", "a.json"});
  expect_ended(without, 0);
  EXPECT_TRUE(contains(without.out, "data/train_*.bin")) << without.out;
  EXPECT_TRUE(contains(without.out, "--set model.vocabulary=N")) << without.out;
  folder.write_data();
  const Outcome with = folder.run({"plan", "a.json"});
  expect_ended(with, 0);
  EXPECT_FALSE(contains(with.out, "--set model.vocabulary=N")) << with.out;
}

TEST(Plan, says_which_micro_batch_auto_is) {
  const Workspace folder;
  folder.write_config("a", {{"training", {{"micro_batch", "auto"}}}});
  const Outcome outcome = folder.run({"plan", "a.json", "--processes", "2"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.out, "training.micro_batch \"auto\": 4, all of a process's part of the batch, fits"))
      << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "micro-batch 4")) << outcome.out;
  expect_refused(folder.run({"bench", "step", "a.json"}), Exit::usage, {"training.micro_batch"});
}

TEST(Plan, refuses_as_many_processes_as_training_refuses) {
  const Workspace folder;
  folder.write_config("a");
  expect_refused(folder.run({"plan", "a.json", "--processes", "3"}), Exit::usage, {"3 processes", "training.batch 8"});
  expect_refused(folder.run({"plan", "a.json", "--processes", "16"}), Exit::usage, {"16 processes", "training.batch"});
}

TEST(Plan, writes_memory_of_a_process_and_traffic_of_all_for_programs) {
  const Workspace folder;
  folder.write_config("a", {{"model", {{"layers", 2}}}});  // 12 matrices
  const auto plan = [&](int processes) {
    expect_ended(folder.run({"plan", "a.json", "--processes", std::to_string(processes), "--json", "plan.json"}), 0);
    return json::parse(folder.read("plan.json"));
  };
  const json alone = plan(1), eight = plan(8);
  EXPECT_EQ(eight.at("processes"), 8);
  EXPECT_EQ(eight.at("tokens_a_step"), 8 * 16);
  EXPECT_GT(alone.at("/memory/optimizer_state"_json_pointer), eight.at("/memory/optimizer_state"_json_pointer));
  // Every parameter travels once to be summed and once back, as fp32, through all but its owner.
  const auto gradients = eight.at("/traffic/parameters/gradients"_json_pointer).get<std::int64_t>();
  EXPECT_GE(gradients, 7 * 4 * eight.at("parameters").get<std::int64_t>());
  EXPECT_LE(gradients, 7 * eight.at("/memory/weights"_json_pointer).get<std::int64_t>());
  EXPECT_EQ(gradients, 7 * plan(2).at("/traffic/parameters/gradients"_json_pointer).get<std::int64_t>());
  EXPECT_EQ(eight.at("/traffic/parameters/total"_json_pointer), 2 * gradients);
  for (const auto& [exchange, traffic] : eight.at("traffic").items()) {
    EXPECT_EQ(alone.at("traffic").at(exchange).at("total"), 0) << exchange;
    std::int64_t sum = 0;
    for (const char* part : {"gradients", "parameters", "factors", "sketches"})
      sum += traffic.at(part).get<std::int64_t>();
    EXPECT_EQ(traffic.at("total"), sum) << exchange;
  }
  const auto total = [&](const char* exchange) { return eight.at("traffic").at(exchange).at("total").get<double>(); };
  EXPECT_LT(total("factors"), total("parameters"));
  EXPECT_LT(total("sketch"), total("factors"));
  expect_refused(folder.run({"plan", "a.json", "--json", "no/such/plan.json"}), Exit::data, {"no/such/plan.json"});
}

TEST(Plan, and_train_tell_of_settings_for_parameters_that_the_model_has_not) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a");
  const Arguments tied = {"a.json", "--set", "optimizer.head.lr=1"};
  const auto run = [&](const char* command, const Arguments& more) {
    Arguments arguments = {command};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = folder.run(arguments);
    expect_ended(outcome, 0);
    return outcome;
  };
  EXPECT_TRUE(contains(run("plan", tied).out, "optimizer.head changes nothing"));
  EXPECT_TRUE(contains(run("train", tied).err, "optimizer.head changes nothing"));
  EXPECT_FALSE(contains(run("plan", {"a.json"}).out, "changes nothing"));
  EXPECT_FALSE(contains(
      run("plan", {"a.json", "--set", "optimizer.head.lr=1", "--set", "model.tied_embeddings=false"}).out, "nothing"));
}

TEST(ConfigCommand, prints_the_committed_reference_and_schema) {
  const Workspace folder;
  const auto committed = [](const char* name) {
    const Workspace source;
    fs::copy_file(fs::path(POLARON_SOURCE_DIR) / name, source / "file");
    return source.read("file");
  };
  const Outcome markdown = folder.run({"config", "--markdown"});
  expect_ended(markdown, 0);
  EXPECT_EQ(markdown.out, committed("docs/config.md")) << "run: polaron config --markdown > docs/config.md";
  const Outcome schema = folder.run({"config", "--schema"});
  expect_ended(schema, 0);
  EXPECT_EQ(json::parse(schema.out), json::parse(committed("configs/polaron.schema.json")));
}

TEST(ConfigCommand, prints_a_config_in_full_that_reads_back_to_the_same) {
  const Workspace folder;
  folder.write_config("a", {{"optimizer", {{"matrices", {{"lr", 0.03}}}}}});
  const Outcome first = folder.run({"config", "a.json", "--set", "seed=5"});
  expect_ended(first, 0);
  const json full = json::parse(first.out);
  EXPECT_EQ(full.at("/seed"_json_pointer), 5);
  EXPECT_EQ(full.at("/optimizer/matrices/lr"_json_pointer), 0.03);
  EXPECT_EQ(full.at("/training/micro_batch"_json_pointer), 8);
  folder.write("b.json", first.out);
  const Outcome second = folder.run({"config", "b.json"});
  expect_ended(second, 0);
  EXPECT_EQ(second.out, first.out);
}

}  // namespace
}  // namespace polaron::test

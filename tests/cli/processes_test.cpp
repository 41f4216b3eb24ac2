// Several processes under mpirun: the same training as one, the bytes that were planned, and an end for all when one
// cannot go on.
#ifdef POLARON_MPIRUN

#include <signal.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <tuple>

#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

ProcessOptions with_processes(int processes) {
  // Root may be who runs the tests in a container; two cores may be all there are.
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  ::setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
  ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // Open MPI does not free all of its memory
  ProcessOptions options;
  options.launcher = {POLARON_MPIRUN, "-n", std::to_string(processes)};
  return options;
}

json low_rank(const json& more = json::object()) {
  json patch = {{"optimizer", {{"matrices", {{"type", "low_rank_muon"}, {"rank", 8}}}}},
                {"training", {{"batch", 8}, {"gradient_clip", 0}}}};
  patch.merge_patch(more);
  return patch;
}
json exchange(const char* how) { return {{"parallel", {{"exchange", how}, {"check_every", 5}}}}; }

// Trains runs/NAME on so many processes; one: without mpirun.
void train(const Workspace& folder, const std::string& name, int processes, const json& patch,
           const Arguments& more = {}) {
  Arguments arguments = {"train", folder.write_config(name, patch)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome outcome = folder.run(arguments, processes == 1 ? ProcessOptions{} : with_processes(processes));
  expect_ended(outcome, 0);
}

void expect_same_losses(const Workspace& folder, const std::string& a, const std::string& b, double tolerance) {
  const std::vector<double> x = folder.losses(a), y = folder.losses(b);
  ASSERT_EQ(x.size(), 20U);
  ASSERT_EQ(y.size(), 20U);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], y[i], tolerance) << b << ", step " << i + 1;
}

std::string weights_of(const Workspace& folder, const std::string& run) {
  return folder.read("runs/" + run + "/checkpoints/latest/model.safetensors");
}

struct Named {
  const char* type;
  double tolerance;  // low rank without momentum: the sketch's basis amplifies what the order of sums changes
  const char* precision = "fp32";
};
class EveryNumberOfProcesses : public testing::TestWithParam<Named> {};

TEST_P(EveryNumberOfProcesses, sees_the_same_batches_and_gives_the_same_losses) {
  const Workspace folder;
  folder.write_data();
  json patch = {{"optimizer", {{"matrices", {{"type", GetParam().type}}}}},
                {"training", {{"batch", 8}}},
                {"precision", GetParam().precision},
                {"allow_slow_bf16", true}};
  if (!contains(GetParam().type, "low_rank")) patch["optimizer"]["matrices"]["rank"] = nullptr;
  train(folder, "1", 1, patch);
  for (const int processes : {2, 4}) {
    const std::string name = std::to_string(processes);
    train(folder, name, processes, patch);
    expect_same_losses(folder, "1", name, GetParam().tolerance);
    const double perplexity = folder.metrics("1", "end").back().at("perplexity").get<double>();
    EXPECT_NEAR(folder.metrics(name, "end").back().at("perplexity").get<double>(), perplexity,
                10 * GetParam().tolerance * perplexity);
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizers, EveryNumberOfProcesses,
                         testing::Values(Named{"adamw", 5e-6}, Named{"muon", 1e-5}, Named{"low_rank_muon", 1e-5},
                                         Named{"low_rank_msgd", 1e-4}, Named{"muon", 5e-3, "bf16"},
                                         Named{"low_rank_muon", 5e-3, "bf16"}),
                         [](const auto& chosen) {
                           return std::string(chosen.param.type) + "_" + chosen.param.precision;
                         });

TEST(Exchange, of_factors_equals_that_of_parameters_to_the_bit) {
  const Workspace folder;
  folder.write_data();
  for (const char* precision : {"fp32", "bf16"}) {
    const json in_precision = low_rank({{"precision", precision}, {"allow_slow_bf16", true}});
    for (const int processes : {2, 4}) {
      const std::string n = precision + std::to_string(processes);
      for (const char* how : {"parameters", "factors"}) {
        json patch = in_precision;
        patch.merge_patch(exchange(how));
        train(folder, how + n, processes, patch);
      }
      EXPECT_TRUE(weights_of(folder, "parameters" + n) == weights_of(folder, "factors" + n)) << n;
    }
  }
}

TEST(Exchange, of_sketches_is_low_rank_muon_on_the_whole_gradient) {
  const Workspace folder;
  folder.write_data();
  for (const char* sketch : {"columns", "gaussian"}) {
    json patch = low_rank({{"optimizer", {{"matrices", {{"sketch", sketch}}}}}});
    train(folder, std::string("alone-") + sketch, 1, patch);
    patch.merge_patch(exchange("sketch"));
    for (const int processes : {2, 4}) {
      const std::string name = fs::path(std::string(sketch) + std::to_string(processes)).string();
      train(folder, name, processes, patch);
      expect_same_losses(folder, std::string("alone-") + sketch, name, 1e-5);
    }
  }
}

TEST(Exchange, moves_the_bytes_that_were_planned) {
  const Workspace folder;
  folder.write_data();
  std::vector<std::int64_t> moved;
  for (const char* how : {"parameters", "factors", "sketch"}) {
    for (const char* precision : {"bf16", "fp32"}) {
      json patch = low_rank({{"precision", precision}, {"allow_slow_bf16", true}});
      patch.merge_patch(exchange(how));
      const std::string name = std::string(how) + "-" + precision;
      const Outcome outcome = folder.run({"train", folder.write_config(name, patch)}, with_processes(4));
      expect_ended(outcome, 0);
      moved.push_back(folder.metrics(name, "end").back().at("moved_a_step").get<std::int64_t>());
      const std::string bytes = std::to_string(moved.back());
      EXPECT_TRUE(contains(outcome.out, bytes + " bytes in all processes; planned " + bytes + ")")) << outcome.out;
    }
  }
  EXPECT_LT(moved[0], moved[1]) << "weights travel in bf16 where the model uses that";
  EXPECT_LT(moved[3], moved[1]);
  EXPECT_LT(moved[5], moved[3]);
}

TEST(Exchange, of_sketches_is_refused_where_it_would_not_be_exact) {
  const Workspace folder;
  folder.write_data();
  json clipped = low_rank(exchange("sketch"));
  clipped["training"]["gradient_clip"] = 1.0;
  expect_refused(folder.run({"train", folder.write_config("a", clipped)}, with_processes(2)), Exit::usage,
                 {"sketch", "training.gradient_clip"});
  json power = low_rank(exchange("sketch"));
  power["optimizer"]["matrices"]["sketch"] = "power";
  expect_refused(folder.run({"train", folder.write_config("b", power)}, with_processes(2)), Exit::usage,
                 {"sketch", "columns", "gaussian"});
}

class EveryExchange : public testing::TestWithParam<const char*> {};

TEST_P(EveryExchange, lets_checkpoints_move_between_numbers_of_processes) {
  const Workspace folder;
  folder.write_data();
  const json patch = low_rank({{"training", {{"steps", 20}}}, {"checkpoint", {{"every", 5}}}});
  train(folder, "straight", 1, patch);
  json moving = patch;
  moving.merge_patch(exchange(GetParam()));
  const std::string config = folder.write_config("moving", moving);
  // 1 -> 2 -> 4 -> 1; each stops itself after five steps, as a signal would.
  const int processes[] = {1, 2, 4, 1};
  for (int part = 0; part < 4; ++part) {
    Arguments arguments = {"train", config, "--set", "checkpoint.keep=0"};
    if (part > 0) {
      const fs::path latest = folder / ("runs/moving/checkpoints/step-000000" + std::string(part == 1   ? "05"
                                                                                            : part == 2 ? "10"
                                                                                                        : "15"));
      arguments.insert(arguments.end(), {"--resume", latest.string()});
    }
    const Outcome outcome =
        folder.run(arguments, processes[part] == 1 ? ProcessOptions{} : with_processes(processes[part]));
    expect_ended(outcome, 0);
  }
  expect_same_losses(folder, "straight", "moving", 1e-5);
}

TEST(Spectra, are_measured_by_the_owners_and_agree_with_those_of_one_process) {
  const Workspace folder;
  folder.write_data();
  const json spectra = {{"every", 10}, {"matrices", "blocks.0.*"}, {"ranks", {4, 8}}};
  const json patch = low_rank({{"diagnostics", {{"spectra", spectra}}}});
  train(folder, "1", 1, patch);
  train(folder, "2", 2, patch);
  const std::vector<json> one = folder.spectra("1"), two = folder.spectra("2");
  ASSERT_EQ(one.size(), 6U * 2U * 2U);  // matrices; gradient and momentum; steps 10 and 20
  ASSERT_EQ(one.size(), two.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].at("matrix"), two[i].at("matrix"));
    EXPECT_EQ(one[i].at("of"), two[i].at("of"));
    const auto x = one[i].at("singular_values").get<std::vector<double>>();
    const auto y = two[i].at("singular_values").get<std::vector<double>>();
    ASSERT_EQ(x.size(), y.size());
    for (std::size_t k = 0; k < x.size(); ++k) EXPECT_NEAR(x[k], y[k], 2e-5 * x[0]) << one[i].at("matrix");
    const auto expect_near = [&](const char* pointer, double tolerance) {
      const json::json_pointer at(pointer);
      EXPECT_NEAR(one[i].at(at).get<double>(), two[i].at(at).get<double>(), tolerance) << pointer << one[i];
    };
    expect_near("/stable_rank", 2e-5);
    expect_near("/captured/4", 2e-6);
    expect_near("/captured/8", 2e-6);
    if (one[i].at("of") == "momentum") expect_near("/orthogonality_error", 5e-5);
  }
}

TEST(Spectra, of_matrices_that_are_not_there_and_of_sketches_are_refused) {
  const Workspace folder;
  folder.write_data();
  const Arguments none = {
      "train", folder.write_config("a", {{"diagnostics", {{"spectra", {{"every", 1}, {"matrices", "x*"}}}}}})};
  const Outcome missing = folder.run(none);
  expect_ended(missing, 2);
  EXPECT_TRUE(contains(missing.err, "no matrix is named like \"x*\"")) << missing.err;
  json patch = low_rank(exchange("sketch"));
  patch["diagnostics"] = {{"spectra", {{"every", 1}}}};
  const Arguments sketches = {"train", folder.write_config("b", patch)};
  const Outcome summed = folder.run(sketches, with_processes(2));
  expect_ended(summed, 2);
  EXPECT_TRUE(contains(summed.err, "another exchange")) << summed.err;
}

TEST(Spectra, of_matrices_that_are_divided_among_processes_are_refused_with_the_reason) {
  const Workspace folder;
  folder.write_data();
  const json patch = {{"optimizer", {{"matrices", {{"type", "adamw"}, {"rank", nullptr}}}}},
                      {"diagnostics", {{"spectra", {{"every", 10}}}}}};
  train(folder, "alone", 1, patch);
  EXPECT_EQ(folder.spectra("alone").size(), 6U * 2U);  // gradients of the matrices of the middle block; steps 10 and 20
  expect_refused(folder.run({"train", folder.write_config("two", patch)}, with_processes(2)), Exit::usage,
                 {"diagnostics.spectra", "adamw", "one process"});
}

// The children of a process, by /proc: the processes that mpirun has started here.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  std::ifstream list("/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent) + "/children");
  for (pid_t child = 0; list >> child;) children.push_back(child);
  return children;
}

TEST_P(EveryExchange, ends_all_processes_when_one_is_killed_and_resumes_to_the_bit) {
  const Workspace folder;
  folder.write_data();
  const json patch = low_rank({{"checkpoint", {{"every", 10}}},
                               {"schedule", {{"type", "constant"}}},  // the same for any number of steps
                               {"parallel", {{"exchange", GetParam()}}}});
  train(folder, "straight", 2, patch);
  const std::string config = folder.write_config("killed", patch);
  {
    ProcessOptions options = with_processes(2);
    options.seconds = 60;
    Process process(folder.path(), {"train", config, "--set", "training.steps=100000"}, options);
    ASSERT_TRUE(process.read_until("step-00000010"));
    const std::vector<pid_t> ranks = children_of(process.id());
    ASSERT_EQ(ranks.size(), 2U);
    ::kill(ranks[1], SIGKILL);
    const Outcome outcome = process.finish();
    EXPECT_FALSE(outcome.hung);
    EXPECT_NE(outcome.code, 0);
  }
  fs::remove_all(folder / "runs/killed/checkpoints/latest");
  const Outcome resumed = folder.run(
      {"train", config, "--resume", (folder / "runs/killed/checkpoints/step-00000010").string()}, with_processes(2));
  expect_ended(resumed, 0);
  EXPECT_TRUE(weights_of(folder, "straight") == weights_of(folder, "killed"));
}

INSTANTIATE_TEST_SUITE_P(Exchanges, EveryExchange, testing::Values("parameters", "factors", "sketch"),
                         [](const auto& chosen) { return std::string(chosen.param); });

TEST(Processes, that_together_do_not_fit_into_the_memory_that_they_share_are_refused) {
  const Workspace folder;
  folder.write_data();
  std::ifstream meminfo("/proc/meminfo");
  std::string word;
  double free = 0;
  while (meminfo >> word) {
    if (word == "MemAvailable:") meminfo >> free;
  }
  const auto memory = [&](int layers) {  // of each of two processes
    folder.write_config("a", {{"model", {{"width", 1024}, {"layers", layers}}}});
    expect_ended(folder.run({"plan", "a.json", "--processes", "2", "--json", "plan.json"}), 0);
    return json::parse(folder.read("plan.json")).at("/memory/total"_json_pointer).get<double>();
  };
  const double few = memory(10), layer = (memory(20) - few) / 10;
  const int layers = 10 + static_cast<int>((0.75 * 1024 * free - few) / layer);  // three quarters each
  ASSERT_GT(layers, 1);
  folder.write_config("a", {{"model", {{"width", 1024}, {"layers", layers}}}});
  expect_refused(folder.run({"train", "a.json"}, with_processes(2)), Exit::device,
                 {"each of the 2 processes that share it", "GiB are free"});
}

TEST(Processes, that_cannot_share_the_batch_or_the_matrices_are_refused_once) {
  const Workspace folder;
  folder.write_data();
  struct Case {
    json training;
    int processes;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {{{{"batch", 2}}, 3, {"3 processes", "training.batch", "at most 2"}},
                                   {{{"batch", 4}}, 3, {"3 processes", "do not divide", "training.batch 4"}},
                                   {{{"batch", 12}, {"micro_batch", 4}}, 2, {"micro_batch 4", "6 sequences"}}};
  for (const Case& each : cases) {
    const std::string config = folder.write_config("a", {{"training", each.training}});
    const Outcome outcome = folder.run({"train", config}, with_processes(each.processes));
    expect_refused(outcome, Exit::usage, each.words);
    EXPECT_EQ(count_of(outcome.err, "error: "), 1U) << outcome.err;
    EXPECT_FALSE(fs::exists(folder / "runs/a"));
  }
}

TEST(Processes, of_which_one_has_another_config_or_a_bad_shard_all_end) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a");
  folder.write_config("b", {{"seed", 4}, {"name", "a"}, {"output", "runs/a"}});
  Outcome outcome =
      folder.run({"train", "a.json", ":", "-n", "1", POLARON_PROGRAM, "train", "b.json"}, with_processes(1));
  expect_refused(outcome, Exit::usage, {"config"});
  EXPECT_FALSE(fs::exists(folder / "runs/a"));

  // The same relative path, damaged in the other process's folder.
  fs::create_directories(folder / "other");
  fs::copy(folder / "data", folder / "other/data", fs::copy_options::recursive);
  fs::copy(folder / "a.json", folder / "other/a.json");
  folder.write("other/data/train_1.bin", "not a shard");
  outcome = folder.run(
      {"train", "a.json", ":", "-n", "1", "-wdir", (folder / "other").string(), POLARON_PROGRAM, "train", "a.json"},
      with_processes(1));
  expect_refused(outcome, Exit::data, {"process 1 of 2", "train_1.bin"});
  EXPECT_EQ(count_of(outcome.err, "error: "), 1U) << outcome.err;
}

TEST(Processes, that_read_different_shards_are_refused) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a");
  for (const std::string kind : {"train", "validation"}) {
    SCOPED_TRACE(kind);
    fs::create_directories(folder / "other");
    fs::copy(folder / "data", folder / "other/data", fs::copy_options::recursive);
    fs::copy(folder / "a.json", folder / "other/a.json");
    folder.write("other/data/" + kind + "_9.bin", shard(tiny_language(3000, 7)));
    const Outcome outcome = folder.run(
        {"train", "a.json", ":", "-n", "1", "-wdir", (folder / "other").string(), POLARON_PROGRAM, "train", "a.json"},
        with_processes(1));
    expect_refused(
        outcome, Exit::data,
        {"different " + std::string(kind == "train" ? "training" : "validation"), "give every machine the same files"});
    EXPECT_FALSE(fs::exists(folder / "runs/a"));
    fs::remove_all(folder / "other");
  }
}

// SIGTERM to the second of two processes ends both as interrupted.
void expect_to_stop_by_the_second(Process& process) {
  const std::vector<pid_t> ranks = children_of(process.id());
  EXPECT_EQ(ranks.size(), 2U);
  if (ranks.size() == 2) ::kill(ranks[1], SIGTERM);
  const Outcome outcome = process.finish();
  EXPECT_FALSE(outcome.hung);
  EXPECT_EQ(outcome.code, static_cast<int>(Exit::interrupted)) << outcome.err;
}

TEST(Processes, leave_a_validation_together_at_a_signal_to_one_of_them) {
  const Workspace folder;
  folder.write_data();
  folder.write("data/validation_0.bin", shard(std::vector<int>(4'000'000, 'a')));  // takes seconds
  Process process(folder.path(), {"train", folder.write_config("a")}, with_processes(2));
  ASSERT_TRUE(process.read_until("peak rate"));
  expect_to_stop_by_the_second(process);
  EXPECT_TRUE(folder.metrics("a", "validation").empty());
  EXPECT_EQ(folder.metrics("a", "end").back().at("step"), 0);
}

TEST(Processes, that_would_start_from_different_checkpoints_are_refused) {
  const Workspace folder;
  folder.write_data();
  const std::string config = folder.write_config("a", {{"training", {{"steps", 12}}}, {"checkpoint", {{"every", 4}}}});
  expect_ended(folder.run({"train", config}), 0);
  const auto expect_nothing_done = [&](const Arguments& arguments, const std::vector<std::string>& words) {
    const auto before = contents(folder.path());
    const Outcome outcome = folder.run(arguments, with_processes(1));
    expect_refused(outcome, Exit::usage, words);
    EXPECT_EQ(count_of(outcome.err, "error: "), 1U) << outcome.err;
    EXPECT_EQ(contents(folder.path()), before);
  };
  const auto step = [&](const char* name) { return (folder / (std::string("runs/a/checkpoints/") + name)).string(); };
  expect_nothing_done({"train", config, "--resume", step("step-00000008"), ":", "-n", "1", POLARON_PROGRAM, "train",
                       config, "--resume", step("step-00000004")},
                      {"--resume", "process 0 starts from step 8", "process 1 starts from step 4"});

  // On a machine with a folder of its own: none at all there, and one of the same step with other weights.
  fs::create_directories(folder / "other");
  fs::copy(folder / "data", folder / "other/data", fs::copy_options::recursive);
  fs::copy(folder / config, folder / "other" / config);
  const auto elsewhere = [&](const Arguments& arguments) {
    Arguments all = arguments;
    all.insert(all.end(), {":", "-n", "1", "-wdir", (folder / "other").string(), POLARON_PROGRAM});
    all.insert(all.end(), arguments.begin(), arguments.end());
    return all;
  };
  expect_ended(folder.run({"train", config, "--set", "output=other/runs/a", "--set", "seed=2"}), 0);
  expect_nothing_done(elsewhere({"train", config, "--resume"}), {"process 0 starts from step 12", "checksum"});
  expect_nothing_done(elsewhere({"train", config, "--set", "output=runs/b", "--init-from", "runs/a"}),
                      {"init_from", "process 0 starts from step 12", "checksum"});
  // transformers' folders have no checksums.json.
  for (const char* place : {"runs/a/checkpoints/latest", "other/runs/a/checkpoints/latest"}) {
    fs::remove(folder / place / "checksums.json");
    fs::remove(folder / place / "trainer.json");
  }
  expect_nothing_done(elsewhere({"train", config, "--set", "output=runs/b", "--init-from", "runs/a"}),
                      {"init_from", "from a folder of weights"});
}

TEST(Processes, stop_together_at_a_signal_to_one_of_them_and_can_be_resumed) {
  const Workspace folder;
  folder.write_data();
  const std::string config = folder.write_config("a", {{"training", {{"steps", 100000}}}});
  ProcessOptions options = with_processes(2);
  Process process(folder.path(), {"train", config}, options);
  ASSERT_TRUE(process.read_until("step     11/"));
  expect_to_stop_by_the_second(process);
  EXPECT_TRUE(fs::exists(folder / "runs/a/checkpoints/latest/model.safetensors"));
}

}  // namespace
}  // namespace polaron::test

#endif

// Checkpoints and run directories that are damaged, foreign, taken, or cannot be written.
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "io/checksum.h"
#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

const json kFiveSteps = {{"training", {{"steps", 5}}}};
const std::string kStep5 = "runs/a/checkpoints/step-00000005";
constexpr std::array<const char*, 6> kFiles = {"checksums.json",        "config.json",  "model.safetensors",
                                               "optimizer.safetensors", "trainer.json", "vocabulary.json"};

// A workspace with data and a run "a" of five steps.
class Checkpoint : public testing::Test {
 protected:
  Checkpoint() {
    folder_.write_data();
    folder_.train("a", kFiveSteps);
  }
  // A fresh copy of its checkpoint.
  std::string copy() const {
    fs::remove_all(folder_ / "copy");
    fs::copy(folder_ / kStep5, folder_ / "copy");
    return "copy";
  }
  // Neither eval nor a resumed run takes the copy, and both say why.
  void expect_copy_refused(const std::vector<std::string>& words) const {
    const auto before = contents(folder_.path());
    expect_refused(folder_.run({"eval", "copy", "--data", "data/validation_*.bin"}), Exit::data, words);
    expect_refused(folder_.run({"train", "a.json", "--set", "output=runs/b", "--resume", "copy"}), Exit::data, words);
    EXPECT_EQ(contents(folder_.path()), before);
  }
  Workspace folder_;
};

TEST_F(Checkpoint, holds_these_files_and_leaves_nothing_else_behind) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : contents(folder_ / kStep5)) names.push_back(name);
  EXPECT_EQ(names, std::vector<std::string>(kFiles.begin(), kFiles.end()));
  EXPECT_EQ(folder_.checkpoints("a"), (std::vector<std::string>{"latest", "step-00000005"}));
  EXPECT_EQ(fs::read_symlink(folder_ / "runs/a/checkpoints/latest"), "step-00000005");
}

TEST_F(Checkpoint, without_one_of_its_files_is_refused) {
  for (const char* name : kFiles) {
    SCOPED_TRACE(name);
    fs::remove(folder_ / copy() / name);
    expect_copy_refused({"copy", name});
  }
}

TEST_F(Checkpoint, with_a_flipped_byte_in_any_file_is_refused) {
  for (const char* name : kFiles) {
    SCOPED_TRACE(name);
    const std::string path = copy() + "/" + name;
    std::string bytes = folder_.read(path);
    // A letter of a key, where half of the file might be a digit of another file's checksum.
    bytes[name == kFiles[0] ? bytes.find("bytes") : bytes.size() / 2] ^= 0x01;
    folder_.write(path, bytes);
    expect_copy_refused({"copy", "Use another copy of the folder or an earlier checkpoint"});
  }
}

TEST_F(Checkpoint, that_was_cut_short_is_refused) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "trainer.json"}) {
    SCOPED_TRACE(name);
    const fs::path path = folder_ / copy() / name;
    const auto size = fs::file_size(path);
    fs::resize_file(path, size - 7);
    expect_copy_refused({name, std::to_string(size - 7) + " bytes", std::to_string(size), "cut short"});
  }
}

TEST_F(Checkpoint, of_a_newer_format_version_is_refused) {
  const std::string path = copy() + "/trainer.json";
  json state = json::parse(folder_.read(path));
  state["format_version"] = 2;
  state["polaron_version"] = "7.8.9";
  folder_.write(path, state.dump());
  write_manifest(folder_ / "copy");
  expect_copy_refused({"copy/trainer.json", "format version 2 is newer", "7.8.9"});
}

TEST_F(Checkpoint, whose_folder_is_none_is_refused) {
  folder_.write("file", "text");
  const auto before = contents(folder_.path());
  const Arguments data{"--data", "data/validation_*.bin"};
  const auto eval = [&](const std::string& name) { return folder_.run({"eval", name, data[0], data[1]}); };
  expect_refused(eval("none"), Exit::data, {"none does not exist"});
  expect_refused(eval("data"), Exit::data, {"data is no checkpoint", "config.json", "model.safetensors"});
  expect_refused(eval("file"), Exit::data, {"file is no checkpoint"});
  expect_refused(folder_.run({"generate", "data"}), Exit::data, {"data is no checkpoint"});
  expect_refused(folder_.run({"train", "a.json", "--set", "output=runs/b", "--init-from", "data"}), Exit::data,
                 {"data is no checkpoint"});
  expect_refused(folder_.run({"train", "a.json", "--set", "output=runs/b", "--init-from", "with \"quotes\" 1"}),
                 Exit::data, {"with \"quotes\" 1 does not exist"});
  EXPECT_EQ(contents(folder_.path()), before);
}

TEST_F(Checkpoint, of_another_architecture_is_refused_with_the_difference) {
  const auto before = contents(folder_.path());
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {"model.heads=8", {"heads is 4 there and 8 here"}},  // the same tensors with another meaning
      {"model.layers=2", {"layers is 1 there and 2 here"}},
      {"model.width=64", {"width is 32 there and 64 here", "mlp_hidden is 128 there and 256 here"}},
      {"model.mlp=relu2", {R"(mlp is "gelu" there and "relu2" here)"}},
      {"model.preset=llama", {R"(norm is "layernorm" there and "rmsnorm" here)"}},
      {"model.vocabulary=300", {"vocabulary is 257 there and 300 here"}},
  };
  for (const auto& [setting, words] : cases) {
    SCOPED_TRACE(setting);
    Arguments arguments{"train", "a.json", "--set", "output=runs/b", "--set", setting, "--resume", kStep5};
    expect_refused(folder_.run(arguments), Exit::data, words);
    arguments[6] = "--init-from";
    expect_refused(folder_.run(arguments), Exit::data, words);
  }
  expect_refused(folder_.run({"train", "a.json", "--set", "output=runs/b", "--set", "optimizer.matrices.type=adamw",
                              "--resume", kStep5}),
                 Exit::data, {"optimizer.safetensors", "another model or optimizer", "--init-from"});
  EXPECT_EQ(contents(folder_.path()), before);
}

TEST_F(Checkpoint, without_optimizer_state_starts_a_new_run_but_resumes_none) {
  fs::create_directories(folder_ / "weights");
  for (const char* name : {"config.json", "model.safetensors"}) fs::copy(folder_ / kStep5 / name, folder_ / "weights");
  expect_refused(folder_.run({"train", "a.json", "--set", "output=runs/b", "--resume", "weights"}), Exit::data,
                 {"weights holds weights only", "--init-from"});
  expect_ended(folder_.run({"train", "a.json", "--set", "output=runs/b", "--init-from", "weights"}), 0);
}

TEST_F(Checkpoint, half_written_by_a_killed_process_is_ignored_and_cleaned_away) {
  const pid_t dead = ::fork();
  if (dead == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(dead, nullptr, 0), dead);
  std::array<char, 256> host{};
  ASSERT_EQ(::gethostname(host.data(), host.size() - 1), 0);
  const std::string name =
      ".step-00000007.tmp-" + std::string(host.data()) + "-" + std::to_string(static_cast<int>(dead)) + "-0";
  folder_.write("runs/a/checkpoints/" + name + "/model.safetensors", folder_.read(kStep5 + "/model.safetensors"));

  EXPECT_EQ(folder_.eval("runs/a").at("checkpoint"), "runs/a/checkpoints/latest");
  expect_ended(folder_.run({"train", "a.json", "--set", "training.steps=8", "--resume"}), 0);
  EXPECT_EQ(folder_.checkpoints("a"), (std::vector<std::string>{"latest", "step-00000005", "step-00000008"}));
}

TEST_F(Checkpoint, that_latest_does_not_point_at_yet_is_found) {
  // Killed between publishing the first checkpoint and pointing at it.
  fs::remove(folder_ / "runs/a/checkpoints/latest");
  expect_refused(folder_.run({"train", "a.json"}), Exit::usage, {"already holds a run", "--resume"});
  expect_ended(folder_.run({"train", "a.json", "--set", "training.steps=6", "--resume"}), 0);
  EXPECT_EQ(folder_.losses("a").size(), 6U);
}

TEST_F(Checkpoint, is_found_from_the_run_directory_and_from_its_checkpoints_folder) {
  const double loss = folder_.eval(kStep5).at("loss");
  for (const char* name : {"runs/a", "runs/a/", "runs/a/checkpoints", "runs/a/checkpoints/latest"}) {
    SCOPED_TRACE(name);
    EXPECT_EQ(folder_.eval(name).at("loss").get<double>(), loss);
  }
}

TEST_F(Checkpoint, carries_what_eval_and_generate_need_and_bad_requests_of_them_are_named) {
  const auto before = contents(folder_.path());
  const Arguments data{"--data", "data/validation_*.bin"};
  expect_refused(folder_.run({"eval", "runs/a", "--data", "none_*"}), Exit::data, {"'none_*'", "no file matches"});
  expect_refused(folder_.run({"eval", "runs/a", "--data", "a.json"}), Exit::data, {"a.json", "within the 1024-byte"});
  expect_refused(folder_.run({"eval", "runs/a", data[0], data[1], "--sequence-length", "17"}), Exit::usage,
                 {"--sequence-length 17", "16"});
  expect_refused(folder_.run({"eval", "runs/a", data[0], data[1], "--device", "cuda"}), Exit::device, {"CUDA"});
  expect_refused(folder_.run({"generate", "runs/a", "--prompt-ids", "1,257"}), Exit::usage,
                 {"--prompt-ids", "257", "from 0 to 256"});
  expect_refused(folder_.run({"generate", "runs/a", "--prompt-ids=-1"}), Exit::usage, {"--prompt-ids", "-1"});
  expect_refused(folder_.run({"generate", "runs/a", "--prompt-ids", "1,x"}), Exit::usage, {"--prompt-ids", "1,x"});
  expect_refused(folder_.run({"generate", "runs/a", "--prompt", "a", "--prompt-ids", "1"}), Exit::usage,
                 {"--prompt", "excludes"});
  EXPECT_EQ(contents(folder_.path()), before);
}

TEST(WithoutVocabulary, generate_asks_for_prompt_ids_and_prints_ids) {
  const Workspace folder;
  folder.write_data();
  fs::remove(folder / "data/vocabulary.json");
  folder.train("a", {{"model", {{"vocabulary", 257}}}, {"training", {{"steps", 2}}}});
  expect_refused(folder.run({"generate", "runs/a", "--prompt", "the"}), Exit::usage,
                 {"vocabulary.json", "--prompt-ids"});
  expect_refused(folder.run({"generate", "runs/a"}), Exit::usage, {"separator", "--prompt"});
  const Outcome ids = folder.run({"generate", "runs/a", "--prompt-ids", "116,104", "--tokens", "5", "--threads", "1"});
  expect_ended(ids, 0);
  EXPECT_EQ(count_of(ids.out, " "), 4U) << ids.out;
  EXPECT_EQ(ids.out.find_first_not_of("0123456789 \n"), std::string::npos) << ids.out;
}

// Run directories -----------------------------------------------------------------------------------------------------

TEST_F(Checkpoint, its_run_directory_is_not_overwritten_by_a_new_run_and_continued_by_resume) {
  const auto before = contents(folder_ / "runs");
  folder_.write_config("a", {{"training", {{"steps", 8}}}});
  expect_refused(folder_.run({"train", "a.json"}), Exit::usage,
                 {"runs/a already holds a run", "--resume", "--set output=DIR"});
  EXPECT_EQ(contents(folder_ / "runs"), before);
  expect_ended(folder_.run({"train", "a.json", "--resume"}), 0);
  EXPECT_EQ(folder_.losses("a").size(), 8U);
  // At the end there is nothing to do; beyond it there is a contradiction.
  expect_ended(folder_.run({"train", "a.json", "--resume"}), 0);
  EXPECT_EQ(folder_.losses("a").size(), 8U);
  expect_refused(folder_.run({"train", "a.json", "--set", "training.steps=7", "--resume"}), Exit::usage,
                 {"at step 8", "7 steps", "training.steps"});
}

TEST_F(Checkpoint, of_another_run_is_not_resumed_over_a_run) {
  folder_.train("b", kFiveSteps);
  const auto before = contents(folder_ / "runs");
  expect_refused(folder_.run({"train", "b.json", "--resume", "runs/a"}), Exit::usage,
                 {"runs/b already holds another run than runs/a/checkpoints/latest", "--set output=DIR"});
  EXPECT_EQ(contents(folder_ / "runs"), before);
  expect_ended(folder_.run({"train", "b.json", "--set", "training.steps=6", "--resume", "runs/b/checkpoints"}), 0);
}

TEST(RunDirectory, without_a_checkpoint_says_how_to_start_anew) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", kFiveSteps);
  expect_refused(folder.run({"train", "a.json", "--resume"}), Exit::data,
                 {"runs/a has no checkpoint", "leave out --resume"});
  expect_refused(folder.run({"train", "a.json", "--resume", "runs/b"}), Exit::data, {"runs/b does not exist"});
  EXPECT_FALSE(fs::exists(folder / "runs"));

  folder.write("runs/a/metrics.jsonl", "{\"kind\":\"run\",\"step\":0}\n");  // killed before its first checkpoint
  const auto before = contents(folder.path());
  expect_refused(folder.run({"train", "a.json"}), Exit::usage, {"runs/a already holds a run", "remove it"});
  expect_refused(folder.run({"train", "a.json", "--resume"}), Exit::data,
                 {"runs/a has no checkpoint", "remove the directory and leave out --resume"});
  EXPECT_EQ(contents(folder.path()), before);
}

TEST(RunDirectory, is_not_shared_with_a_process_that_trains_in_it) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", {{"training", {{"steps", 40}}}});
  ProcessOptions paced;
  paced.paced = true;
  Process process(folder.path(), {"train", "a.json"}, paced);
  ASSERT_TRUE(process.read_until("step-00000010"));
  for (const Arguments& arguments : {Arguments{"train", "a.json"}, Arguments{"train", "a.json", "--resume"}}) {
    expect_refused(folder.run(arguments), Exit::usage, {"another process trains in runs/a", "--set output=DIR"});
  }
  folder.eval("runs/a");
  expect_ended(process.finish(), 0);
  EXPECT_EQ(folder.losses("a").size(), 40U);
}

TEST(RunDirectory, that_cannot_be_is_named) {
  const Workspace folder;
  folder.write_data();
  folder.write("file", "text");
  folder.write_config("a", {{"output", "file/run"}});
  folder.write_config("b", {{"output", "file"}});
  const auto before = contents(folder.path());
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {"file/run", "output"});
  expect_refused(folder.run({"train", "b.json"}), Exit::data, {"file", "output"});
  EXPECT_EQ(contents(folder.path()), before);
}

// As a user to whom permissions mean something: root gives up its rights.
class Permissions : public Checkpoint {
 protected:
  void SetUp() override {
    const Outcome outcome = folder_.run({"--version"}, as_nobody());
    if (outcome.code != 0) GTEST_SKIP() << "the user \"nobody\" cannot run " POLARON_PROGRAM;
  }
  void TearDown() override {
    for (const char* name : {"runs", "runs/a", "runs/a/checkpoints", "runs/a/checkpoints/step-00000005"}) {
      set(name, fs::perms::owner_all);
    }
  }
  void set(const std::string& name, fs::perms permissions) const { fs::permissions(folder_ / name, permissions); }
  static ProcessOptions as_nobody() {
    ProcessOptions options;
    options.nobody = true;
    return options;
  }
  static constexpr fs::perms kReadOnly = fs::perms::owner_read | fs::perms::owner_exec | fs::perms::group_read |
                                         fs::perms::group_exec | fs::perms::others_read | fs::perms::others_exec;
};

TEST_F(Permissions, a_read_only_directory_is_named_and_nothing_is_trained) {
  set("runs", kReadOnly);
  set("runs/a", kReadOnly);
  expect_refused(folder_.run({"train", "a.json", "--set", "output=runs/b"}, as_nobody()), Exit::data,
                 {"runs/b", "Permission denied", "--set output=DIR"});
  const Outcome resumed = folder_.run({"train", "a.json", "--set", "training.steps=8", "--resume"}, as_nobody());
  expect_refused(resumed, Exit::data, {"runs/a", "Permission denied", "permissions"});
  EXPECT_FALSE(contains(resumed.out, "step 6")) << resumed.out;
  EXPECT_EQ(folder_.losses("a").size(), 5U);
}

TEST_F(Permissions, what_may_not_be_read_is_named) {
  const auto eval = [&] {
    return folder_.run({"eval", "runs/a", "--data", "data/validation_*.bin", "--threads", "1"}, as_nobody());
  };
  expect_ended(eval(), 0);
  set("data/validation_0.bin", fs::perms::none);
  expect_refused(eval(), Exit::data, {"data/validation_0.bin", "Permission denied"});
  set("runs/a/checkpoints/step-00000005/model.safetensors", fs::perms::none);
  expect_refused(eval(), Exit::data, {"model.safetensors", "Permission denied"});
  set("runs/a", fs::perms::none);
  expect_refused(eval(), Exit::data, {"runs/a", "Permission denied"});
  expect_refused(folder_.run({"train", "a.json", "--resume"}, as_nobody()), Exit::data,
                 {"runs/a", "Permission denied"});
}

// Full disks ----------------------------------------------------------------------------------------------------------

TEST(FullDisk, while_a_checkpoint_is_written_leaves_the_one_before_valid_and_training_says_so) {
  const Workspace folder;
  folder.write_data();
  const json patch = {{"training", {{"steps", 30}}}};
  folder.train("straight", patch);
  folder.write_config("a", patch);
  ProcessOptions paced;
  paced.paced = true;
  Process process(folder.path(), {"train", "a.json"}, paced);
  ASSERT_TRUE(process.read_until("step-00000010"));
  const struct rlimit limit { 32768, 32768 };  // bytes a file: less than the model takes
  ASSERT_EQ(::prlimit(process.id(), RLIMIT_FSIZE, &limit, nullptr), 0);
  const Outcome outcome = process.finish();
  expect_refused(outcome, Exit::data,
                 {"model.safetensors", "File too large", "ulimit -f", "Training stops at step 20",
                  "The newest checkpoint is runs/a/checkpoints/step-00000010"});

  EXPECT_EQ(folder.checkpoints("a"), (std::vector<std::string>{"latest", "step-00000010"}));
  EXPECT_EQ(folder.metrics("a", "end").back().at("exit_code"), 3);
  folder.eval("runs/a");
  expect_ended(folder.run({"train", "a.json", "--resume"}), 0);
  EXPECT_EQ(folder.losses("a"), folder.losses("straight"));
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(folder.read(std::string("runs/a/checkpoints/latest/") + file),
              folder.read(std::string("runs/straight/checkpoints/latest/") + file));
  }
}

TEST(FullDisk, while_the_metrics_are_written_stops_the_run_with_whole_lines) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", {{"training", {{"steps", 100}}}, {"checkpoint", {{"every", 50}}}});
  ProcessOptions paced;
  paced.paced = true;
  Process process(folder.path(), {"train", "a.json"}, paced);
  ASSERT_TRUE(process.read_until("step  51/100"));
  const rlim_t bytes = fs::file_size(folder / "runs/a/metrics.jsonl") + 1000;  // a few lines and a part of one
  const struct rlimit limit { bytes, bytes };
  ASSERT_EQ(::prlimit(process.id(), RLIMIT_FSIZE, &limit, nullptr), 0);
  expect_refused(process.finish(), Exit::data, {"runs/a/metrics.jsonl", "File too large", "ulimit -f"});
  EXPECT_EQ(folder.read("runs/a/metrics.jsonl").back(), '\n');
  EXPECT_GE(folder.losses("a").size(), 51U);  // every line can be read
  EXPECT_LT(folder.losses("a").size(), 100U);
  expect_ended(folder.run({"train", "a.json", "--resume"}), 0);
  EXPECT_EQ(folder.losses("a").size(), 100U);
}

// A small disk of its own, where the test may mount one.
class SmallDisk {
 public:
  explicit SmallDisk(fs::path path) : path_(std::move(path)) {
    fs::create_directories(path_);
    mounted_ = ::mount("polaron-test", path_.c_str(), "tmpfs", 0, "size=400k") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  fs::path path_;
  bool mounted_ = false;
};

TEST(FullDisk, without_space_left_says_how_much_is_missing) {
  const Workspace folder;
  folder.write_data();
  const SmallDisk disk(folder / "runs");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a small disk";
  const Outcome outcome = folder.train("a", {{"training", {{"steps", 30}}}}, {}, static_cast<int>(Exit::data));
  expect_refused(outcome, Exit::data, {"No space left on device", "bytes are free", "Training stops at step"});
  const auto checkpoints = folder.checkpoints("a");
  ASSERT_EQ(checkpoints.size(), 2U) << outcome.err;
  folder.eval("runs/a");
  for (const auto& [name, bytes] : contents(folder / "runs")) EXPECT_FALSE(contains(name, ".tmp-")) << name;
}

}  // namespace
}  // namespace polaron::test

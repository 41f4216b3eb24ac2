// Token data that polaron refuses.
#include "support.h"

namespace polaron::test {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

TEST(BadData, a_glob_without_files_is_named) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", {{"data", {{"train", "data/none_*.bin"}}}});
  folder.write_config("b", {{"data", {{"validation", "elsewhere/*.bin"}}}});
  const auto before = contents(folder.path());
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {"'data/none_*.bin'", "no file matches"});
  expect_refused(folder.run({"train", "b.json"}), Exit::data, {"'elsewhere/*.bin'", "no file matches"});
  EXPECT_EQ(contents(folder.path()), before);
}

TEST(BadData, a_file_that_is_trained_on_and_validated_on_is_named) {
  const Workspace folder;
  folder.write_data();
  const auto refused = [&](const char* train, const char* validation, const std::vector<std::string>& words) {
    folder.write_config("a", {{"data", {{"train", train}, {"validation", validation}}}});
    const auto before = contents(folder.path());
    expect_refused(folder.run({"train", "a.json"}), Exit::usage, words);
    EXPECT_EQ(contents(folder.path()), before);
  };
  refused("data/*.bin", "data/validation_*.bin", {"data/validation_0.bin", "'data/*.bin'", "'data/validation_*.bin'"});
  refused("data/train_*.bin", "data/../data/train_1.bin", {"data/train_1.bin", "data.validation"});
  fs::create_symlink("data", folder / "link");
  refused("link/*_0.bin", "data/validation_*.bin", {"link/validation_0.bin"});
}

TEST(BadData, a_folder_is_refused_with_advice_that_keeps_the_splits_apart) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a", {{"data", {{"train", "data"}}}});
  expect_refused(folder.run({"train", "a.json"}), Exit::usage, {"model.vocabulary"});
  folder.write_config("a", {{"data", {{"train", "data"}}}, {"model", {{"vocabulary", 257}}}});
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {"'data/train_*.bin'"});
}

TEST(BadData, validation_shards_of_another_tokenizer_are_refused_with_both_names) {
  const Workspace folder;
  folder.write_data();
  fs::create_directory(folder / "other");
  fs::rename(folder / "data/validation_0.bin", folder / "other/validation_0.bin");
  json vocabulary = json::parse(folder.read("data/vocabulary.json"));
  vocabulary["name"] = "octets";
  folder.write("other/vocabulary.json", vocabulary.dump());
  folder.train("a", {{"data", {{"validation", "other/*.bin"}}}});
  vocabulary["separator"] = nullptr;
  folder.write("other/vocabulary.json", vocabulary.dump());
  folder.write_config("b", {{"data", {{"validation", "other/*.bin"}}}});
  expect_refused(folder.run({"train", "b.json"}), Exit::usage, {"\"octets\"", "\"bytes\"", "'other/*.bin'"});
  EXPECT_FALSE(fs::exists(folder / "runs/b"));
}

TEST(BadData, a_shard_that_is_none_is_named_with_the_offset_and_nothing_is_made) {
  const Workspace folder;
  folder.write_data();
  const std::vector<int> tokens = tiny_language(2000, 1);
  const std::string good = shard(tokens);
  const std::string bad = "data/train_1.bin";
  struct Case {
    const char* what;
    std::string bytes;
    std::vector<std::string> words;
  };
  const Case cases[] = {
      {"magic", shard(tokens, 12345), {bad, "offset 0", "12345", "20240520"}},
      {"version", shard(tokens, 20240520, 9), {bad, "offset 4", "9", "version 1"}},
      {"negative count", std::string(good).replace(8, 4, "\xff\xff\xff\xff"), {bad, "offset 8", "negative"}},
      {"truncated tail", good.substr(0, good.size() - 5), {bad, "truncated", "2000 tokens", "5 bytes are missing"}},
      {"trailing bytes", good + "abc", {bad, "3 bytes follow the 2000 tokens", "5024"}},
      {"within the header", good.substr(0, 100), {bad, "ends at offset 100", "1024-byte header"}},
      {"empty", "", {bad, "ends at offset 0"}},
      {"text", std::string(3000, 'x'), {bad, "offset 0", "not a token shard"}},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    folder.write(bad, each.bytes);
    folder.write_config("a");
    const auto before = contents(folder.path());
    expect_refused(folder.run({"train", "a.json"}), Exit::data, each.words);
    EXPECT_EQ(contents(folder.path()), before);
  }
  fs::remove(folder / bad);
  fs::create_directory(folder / bad);
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {bad, "not a regular file"});
}

TEST(BadData, fewer_tokens_than_one_batch_are_refused_with_the_figures) {
  const Workspace folder;
  folder.write_data();
  folder.write("data/train_0.bin", shard(tiny_language(100, 1)));
  folder.write("data/train_1.bin", shard({}));
  folder.write_config("a");
  expect_refused(folder.run({"train", "a.json"}), Exit::data,
                 {"data/train_*.bin", "100 tokens", "6 sequences of 16", "batch of 8"});
  EXPECT_FALSE(fs::exists(folder / "runs"));
  folder.write("data/validation_0.bin", shard({256}));
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {"data/validation_*.bin", "without a token to predict"});
}

TEST(BadData, a_token_out_of_range_stops_the_run_there_and_what_was_learned_before_is_kept) {
  const Workspace folder;
  folder.write_data();
  // Without shuffling, step n reads windows 8(n - 1) to 8n - 1 of 16 tokens: token 600 is in the fifth step's.
  std::vector<int> tokens = tiny_language(4000, 1);
  tokens[600] = 300;
  folder.write("data/train_0.bin", shard(tokens));
  folder.train("a", {{"data", {{"shuffle", false}}}}, {}, static_cast<int>(Exit::data));
  const Outcome again = folder.run({"train", "a.json", "--resume"});
  expect_refused(again, Exit::data, {"data/train_0.bin", "token id 300", "offset 2224", "vocabulary of 257"});
  EXPECT_EQ(folder.losses("a").size(), 4U);
  EXPECT_EQ(folder.checkpoints("a"), (std::vector<std::string>{"latest", "step-00000004"}));
  EXPECT_EQ(folder.metrics("a", "end").back().at("exit_code"), 3);

  tokens[600] = 256;
  folder.write("data/train_0.bin", shard(tokens));
  expect_ended(folder.run({"train", "a.json", "--resume"}), 0);
  folder.train("straight", {{"data", {{"shuffle", false}}}});
  EXPECT_EQ(folder.losses("a"), folder.losses("straight"));
}

TEST(BadData, a_token_out_of_range_in_the_validation_split_stops_before_the_first_step) {
  const Workspace folder;
  folder.write_data();
  std::vector<int> tokens = tiny_language(500, 1);
  tokens.back() = 65535;
  folder.write("data/validation_0.bin", shard(tokens));
  folder.write_config("a");
  expect_refused(folder.run({"train", "a.json"}), Exit::data,
                 {"data/validation_0.bin", "token id 65535", "offset 2022", "vocabulary of 257"});
  EXPECT_TRUE(folder.losses("a").empty());
  EXPECT_TRUE(folder.checkpoints("a").empty());
}

TEST(BadData, a_vocabulary_that_is_none_is_named) {
  const Workspace folder;
  folder.write_data();
  folder.write_config("a");
  folder.write("data/vocabulary.json", "{");
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {"data/vocabulary.json", "not valid JSON"});
  folder.write("data/vocabulary.json", R"({"format": "polaron vocabulary", "version": 7})");
  expect_refused(folder.run({"train", "a.json"}), Exit::data, {"data/vocabulary.json", "version 7"});
  fs::remove(folder / "data/vocabulary.json");
  expect_refused(folder.run({"train", "a.json"}), Exit::usage, {"model.vocabulary", "vocabulary.json", "data/train_*"});
  EXPECT_FALSE(fs::exists(folder / "runs"));
}

TEST(BadData, samples_that_the_vocabulary_does_not_allow_are_refused_before_the_first_step) {
  const Workspace folder;
  folder.write_data();
  fs::remove(folder / "data/vocabulary.json");
  const json patch = {{"model", {{"vocabulary", 257}}}, {"sample", {{"every", 5}, {"prompt", "the "}}}};
  folder.write_config("a", patch);
  expect_refused(folder.run({"train", "a.json"}), Exit::usage, {"sample.every", "vocabulary.json"});
  folder.write("data/vocabulary.json", json{{"format", "polaron vocabulary"},
                                            {"version", 1},
                                            {"kind", "opaque"},
                                            {"name", "sentences"},
                                            {"size", 257},
                                            {"separator", nullptr},
                                            {"special_tokens", json::object()}}
                                           .dump());
  expect_refused(folder.run({"train", "a.json"}), Exit::usage, {"sample.prompt", "sentences"});
  EXPECT_FALSE(fs::exists(folder / "runs"));
}

}  // namespace
}  // namespace polaron::test

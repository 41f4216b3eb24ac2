#include "data/vocabulary.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "data/base64.h"
#include "gpt2_files.h"
#include "shard_files.h"
#include "support/errors.h"

namespace polaron {
namespace {

using namespace testing_data;
using test::contains;
using test::error_of;
using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;

std::string fixture(const std::string& name) { return POLARON_SOURCE_DIR "/tests/data/fixtures/" + name; }

Json read_json(const std::string& path) {
  std::ifstream file(path);
  return Json::parse(file);
}

Json small_json() { return read_json(fixture("small_bpe.json")); }

std::string error_of_vocabulary(const Json& json) {
  return error_of(Exit::data, [&] { Vocabulary::parse(json.dump(), "test.json"); });
}

// Every text of a fixture gives its ids, and the ids give the text.
void expect_encodings(const Vocabulary& vocabulary, const std::string& name) {
  const Json cases = read_json(fixture(name));
  ASSERT_GT(cases.size(), 30U);
  for (const auto& entry : cases) {
    const auto text = entry.at("text").get<std::string>();
    const auto ids = entry.at("ids").get<Ids>();
    EXPECT_EQ(vocabulary.encode(text), ids) << entry;
    EXPECT_EQ(vocabulary.decode(ids), text) << entry;
  }
}

TEST(Base64, is_read_and_refused_where_it_is_not_canonical) {
  for (const std::string text : {"", "f", "fo", "foo", "foob", "fooba", "foobar"}) {  // RFC 4648, section 10
    EXPECT_EQ(base64::decode(base64_of(text)), text);
  }
  EXPECT_EQ(base64_of("foob"), "Zm9vYg==");
  EXPECT_EQ(base64_of("\xff\xfe\xfd"), "//79");
  for (const char* wrong : {"Zg=", "Zg", "Z===", "Zh==", "Zm9=", "Zg==Zg==", "Z-9v", "====", "Zm9v\n"}) {
    EXPECT_FALSE(base64::decode(wrong).has_value()) << wrong;
  }
}

TEST(Vocabulary, ids_are_the_same_where_their_bytes_and_the_separator_are) {
  const auto vocabulary = [](const Json& json) { return Vocabulary::parse(json.dump(), "test.json"); };
  const auto changed = [](Json json, const char* patch) {
    json.merge_patch(Json::parse(patch));
    return json;
  };
  const Json bytes = {{"format", "polaron vocabulary"},
                      {"version", 1},
                      {"kind", "bytes"},
                      {"name", "bytes"},
                      {"size", 257},
                      {"separator", 256}};
  const Json opaque = changed(bytes, R"({"kind": "opaque", "name": "a"})");
  const Json pairs = small_json();
  for (const Json& json : {bytes, opaque, pairs}) EXPECT_TRUE(vocabulary(json).same_ids(vocabulary(json)));
  EXPECT_TRUE(vocabulary(bytes).same_ids(vocabulary(changed(bytes, R"({"name": "octets", "more": 1})"))));
  EXPECT_FALSE(vocabulary(bytes).same_ids(vocabulary(changed(bytes, R"({"size": 258})"))));
  EXPECT_FALSE(vocabulary(bytes).same_ids(vocabulary(changed(bytes, R"({"separator": null})"))));
  EXPECT_FALSE(vocabulary(bytes).same_ids(vocabulary(opaque)));
  EXPECT_FALSE(vocabulary(opaque).same_ids(vocabulary(changed(opaque, R"({"name": "b"})"))));
  const Json unmerged = changed(pairs, R"({"merges": []})");
  Json swapped = unmerged;
  std::swap(swapped["tokens"][0], swapped["tokens"][1]);
  EXPECT_FALSE(vocabulary(unmerged).same_ids(vocabulary(swapped)));
}

TEST(Vocabulary, bytes_are_their_own_ids) {
  const auto vocabulary = Vocabulary::parse(
      R"({"format": "polaron vocabulary", "version": 1, "kind": "bytes", "name": "bytes", "size": 257, "separator": 256,
          "special_tokens": {"<|endoftext|>": 256}})",
      "test");
  EXPECT_EQ(vocabulary.kind(), Vocabulary::Kind::bytes);
  EXPECT_EQ(vocabulary.size(), 257);
  EXPECT_EQ(vocabulary.separator_token(), 256);
  EXPECT_EQ(vocabulary.encode("a\xff\xc3\xa9"), (Ids{97, 255, 195, 169}));
  EXPECT_EQ(vocabulary.decode(Ids{97, 255, 0, 256, 257, -1}),
            std::string("a\xff\0<|endoftext|>\xef\xbf\xbd\xef\xbf\xbd", 22));
}

TEST(Vocabulary, byte_pairs_encode_as_the_tokenizer_they_are_from) {
  const auto vocabulary = Vocabulary::load(fixture("small_bpe.json"));
  EXPECT_EQ(vocabulary.kind(), Vocabulary::Kind::byte_level_bpe);
  EXPECT_EQ(vocabulary.size(), 600);
  EXPECT_EQ(vocabulary.separator_token(), 599);
  expect_encodings(vocabulary, "small_encodings.json");
}

TEST(Vocabulary, decoding_tolerates_ids_without_bytes) {
  const auto vocabulary = Vocabulary::load(fixture("small_bpe.json"));
  const auto hello = vocabulary.encode("Hello");
  Ids ids = {599, 600, 1 << 30, -7};
  ids.insert(ids.end(), hello.begin(), hello.end());
  EXPECT_EQ(vocabulary.decode(ids), "<|endoftext|>\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdHello");
}

TEST(Vocabulary, any_bytes_survive_encoding_and_decoding) {
  const auto vocabulary = Vocabulary::load(fixture("small_bpe.json"));
  std::uint64_t state = 7;
  for (int round = 0; round < 300; ++round) {
    std::string bytes;
    for (int i = 0; i < round; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      bytes += static_cast<char>(state >> 56);
    }
    EXPECT_EQ(vocabulary.decode(vocabulary.encode(bytes)), bytes);
  }
  for (const std::string bytes :
       {"\xff", "abc\xc3", "\xe4\xba", "ok \xf0\x9f\x99 ok", "\xed\xa0\x80", "\x80 x", "a\xc0\xaf"}) {
    EXPECT_EQ(vocabulary.decode(vocabulary.encode(bytes)), bytes);
  }
}

TEST(Vocabulary, invalid_utf8_leaves_the_text_around_it_as_it_would_be) {
  const auto vocabulary = Vocabulary::load(fixture("small_bpe.json"));
  Ids expected = vocabulary.encode("Hello world");
  for (const auto& part : {vocabulary.encode("\xff"), vocabulary.encode(" the vocabulary")}) {
    expected.insert(expected.end(), part.begin(), part.end());
  }
  EXPECT_EQ(vocabulary.encode("Hello world\xff the vocabulary"), expected);
}

TEST(Vocabulary, long_runs_neither_crash_nor_lose_anything) {
  const auto vocabulary = Vocabulary::load(fixture("small_bpe.json"));
  for (const std::string unit : {" ", "a", "\n", "!", "9", "\xe5\x8c\x97", "\xff"}) {
    std::string text = "start";
    for (int i = 0; i < 200'000; ++i) text += unit;
    EXPECT_EQ(vocabulary.decode(vocabulary.encode(text)), text);
  }
}

TEST(Vocabulary, ignore_merges_takes_a_whole_piece_that_is_a_token) {
  Json json = small_json();
  // A token that no merges lead to.
  json["tokens"][598] = base64_of("Hello");
  json["merges"] = Json::array();
  EXPECT_EQ(Vocabulary::parse(json.dump(), "test").encode("Hello").size(), 5U);
  json["ignore_merges"] = true;
  EXPECT_EQ(Vocabulary::parse(json.dump(), "test").encode("Hello"), (Ids{598}));
  EXPECT_EQ(Vocabulary::parse(json.dump(), "test").encode("Hello!").size(), 2U);
}

TEST(Vocabulary, the_pattern_of_the_file_is_the_one_that_splits) {
  Json json = small_json();
  const auto plain = Vocabulary::parse(json.dump(), "test").encode("the the");
  json["pattern"] = "[\\s\\S]";  // every character on its own
  const auto split = Vocabulary::parse(json.dump(), "test").encode("the the");
  EXPECT_LT(plain.size(), 7U);
  EXPECT_EQ(split.size(), 7U);
  json["pattern"] = "x*";  // matches the empty text everywhere
  EXPECT_EQ(Vocabulary::parse(json.dump(), "test").decode(plain), "the the");
  const auto empty = Vocabulary::parse(json.dump(), "test");
  EXPECT_EQ(empty.decode(empty.encode("xx\xe5\x8c\x97xa")), "xx\xe5\x8c\x97xa");
}

TEST(Vocabulary, opaque_knows_its_size_and_sends_prompts_to_ids) {
  const auto vocabulary = Vocabulary::parse(
      R"({"format": "polaron vocabulary", "version": 1, "kind": "opaque", "name": "llama", "size": 32000, "separator": 1,
          "special_tokens": {"<s>": 1}})",
      "test");
  EXPECT_EQ(vocabulary.kind(), Vocabulary::Kind::opaque);
  EXPECT_EQ(vocabulary.size(), 32000);
  EXPECT_EQ(vocabulary.name(), "llama");
  const auto message = error_of(Exit::usage, [&] { vocabulary.encode("text"); });
  EXPECT_TRUE(contains(message, "llama"));
  EXPECT_TRUE(contains(message, "--prompt-ids"));
  EXPECT_EQ(vocabulary.decode(Ids{1, 500, 7}), "1 500 7");
}

TEST(Vocabulary, keeps_the_text_of_its_file_for_checkpoints) {
  const TemporaryFolder folder;
  const auto vocabulary = Vocabulary::load(fixture("small_bpe.json"));
  write_bytes(folder.file("vocabulary.json"), vocabulary.json());
  const auto copy = Vocabulary::find_beside(folder.file("train_000000.bin"));
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(copy->json(), vocabulary.json());
  EXPECT_EQ(copy->encode("Hello world"), vocabulary.encode("Hello world"));
  EXPECT_FALSE(Vocabulary::find_beside("/nonexistent/train_000000.bin").has_value());
}

TEST(Vocabulary, separator_may_be_absent) {
  Json json = small_json();
  json["separator"] = nullptr;
  EXPECT_EQ(Vocabulary::parse(json.dump(), "test").separator_token(), -1);
  json.erase("separator");
  EXPECT_EQ(Vocabulary::parse(json.dump(), "test").separator_token(), -1);
}

TEST(Vocabulary, errors_name_the_file_and_the_place_in_it) {
  EXPECT_TRUE(contains(error_of(Exit::data, [] { Vocabulary::load("/nonexistent/vocabulary.json"); }), "/nonexistent"));
  const TemporaryFolder folder;
  EXPECT_TRUE(contains(error_of(Exit::data, [&] { Vocabulary::load(folder.file("")); }), folder.file("")));
  const auto not_json = error_of(Exit::data, [] { Vocabulary::parse("{\"format\": ", "cut.json"); });
  EXPECT_TRUE(contains(not_json, "cut.json"));
  EXPECT_TRUE(contains(not_json, "column 12"));
  error_of(Exit::data, [] { Vocabulary::parse("[]", "test.json"); });
  error_of(Exit::data, [] { Vocabulary::parse("{\"size\": 1e999}", "test.json"); });

  const auto with = [](const char* pointer, const Json& value) {
    Json json = small_json();
    json[Json::json_pointer(pointer)] = value;
    return error_of_vocabulary(json);
  };
  EXPECT_TRUE(contains(with("/format", "other"), "test.json"));
  EXPECT_TRUE(contains(with("/format", "other"), "'/format'"));
  EXPECT_TRUE(contains(with("/version", 2), "version 2"));
  EXPECT_TRUE(contains(with("/version", 0), "'/version'"));
  EXPECT_TRUE(contains(with("/kind", "wordpiece"), "'/kind'"));
  EXPECT_TRUE(contains(with("/name", 3), "'/name'"));
  EXPECT_TRUE(contains(with("/size", 601), "'/tokens'"));
  EXPECT_TRUE(contains(with("/size", -1), "'/size'"));
  EXPECT_TRUE(contains(with("/size", 1.5), "'/size'"));
  EXPECT_TRUE(contains(with("/size", 18446744073709551615ULL), "'/size'"));
  EXPECT_TRUE(contains(error_of(Exit::data,
                                [] {
                                  Vocabulary::parse(R"({"format": "polaron vocabulary", "version": 1, "kind": "bytes",
                                                "name": "bytes", "size": 1000000000})",
                                                    "test.json");
                                }),
                       "'/size'"));
  EXPECT_TRUE(contains(with("/separator", 600), "'/separator'"));
  EXPECT_TRUE(contains(with("/pattern", "(["), "offset 2"));
  EXPECT_TRUE(contains(with("/tokens/300", "!"), "'/tokens/300'"));
  EXPECT_TRUE(contains(with("/tokens/300", ""), "'/tokens/300'"));
  EXPECT_TRUE(contains(with("/tokens/300", 7), "'/tokens/300'"));
  EXPECT_TRUE(contains(with("/tokens/598", small_json()["tokens"][3]), "'/tokens/598'"));
  EXPECT_TRUE(contains(with("/tokens/0", nullptr), "'/tokens'"));
  EXPECT_TRUE(contains(with("/merges/5", Json::array({1, 600})), "'/merges/5'"));
  EXPECT_TRUE(contains(with("/merges/5", Json::array({1, 2, 3})), "'/merges/5'"));
  EXPECT_TRUE(contains(with("/merges/5", Json::array({1, 599})), "'/merges/5'"));
  EXPECT_TRUE(contains(with("/merges/5", Json::array({300, 301})), "'/merges/5'"));
  EXPECT_TRUE(contains(with("/ignore_merges", "yes"), "'/ignore_merges'"));
  EXPECT_TRUE(contains(with("/special_tokens", Json::object({{"<x>", 5}})), "'/special_tokens/<x>'"));
  EXPECT_TRUE(contains(with("/special_tokens", Json::object({{"<x>", 600}})), "'/special_tokens/<x>'"));
  Json missing = small_json();
  missing.erase("merges");
  EXPECT_TRUE(contains(error_of_vocabulary(missing), "'/merges' is missing"));
}

TEST(Vocabulary, a_flipped_bit_anywhere_is_an_error_or_another_vocabulary_but_never_a_crash) {
  std::ifstream file(fixture("small_bpe.json"), std::ios::binary);
  const std::string good{std::istreambuf_iterator<char>(file), {}};
  int refused = 0;
  for (std::size_t i = 0; i < good.size(); i += 7) {
    std::string flipped = good;
    flipped[i] = static_cast<char>(flipped[i] ^ 1 << i % 8);
    try {
      const auto vocabulary = Vocabulary::parse(flipped, "flipped");
      vocabulary.encode("the vocabulary");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::data);
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

// The vocabulary of GPT-2 itself is not part of the project.
class Gpt2Vocabulary : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("POLARON_TEST_DATA");
    if (data == nullptr) GTEST_SKIP() << "POLARON_TEST_DATA does not name a folder with gpt2/encoder.json";
    folder_ = std::filesystem::path(data) / "gpt2";
    if (!std::filesystem::exists(folder_ / "encoder.json")) GTEST_SKIP() << folder_ << " has no encoder.json";
  }
  std::filesystem::path folder_;
};

TEST_F(Gpt2Vocabulary, from_its_own_files_encodes_as_tiktoken_does) {
  const auto vocabulary = gpt2_vocabulary((folder_ / "encoder.json").string(), (folder_ / "vocab.bpe").string());
  EXPECT_EQ(vocabulary.size(), 50257);
  EXPECT_EQ(vocabulary.separator_token(), 50256);
  EXPECT_EQ(vocabulary.encode("Hello world"), (Ids{15496, 995}));
  expect_encodings(vocabulary, "gpt2_encodings.json");
}

// A vocabulary of single bytes and two merges in the form of GPT-2's files.
TEST(Gpt2Files, give_bytes_merges_and_the_separator) {
  const TemporaryFolder folder;
  Json tokens = Json::object();
  const Json small = small_json();
  const auto write = [&](const std::string& merges) {
    write_bytes(folder.file("vocab.json"), tokens.dump());
    write_bytes(folder.file("merges.txt"), merges);
  };
  const auto read = [&] { return gpt2_vocabulary(folder.file("vocab.json"), folder.file("merges.txt")); };
  std::int32_t id = 0;
  for (int byte = 0, other = 256; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int character = printable ? byte : other++;
    std::string text;
    if (character < 128) {
      text += static_cast<char>(character);
    } else {
      text += static_cast<char>(0xc0 | character >> 6);
      text += static_cast<char>(0x80 | (character & 63));
    }
    tokens[text] = id++;
  }
  tokens["he"] = 256;
  tokens["\xc4\xa0he"] = 257;  // " he"
  tokens["<|endoftext|>"] = 258;
  write("#version: 0.2\nh e\n\xc4\xa0 he\r\n");
  const auto vocabulary = read();
  EXPECT_EQ(vocabulary.size(), 259);
  EXPECT_EQ(vocabulary.separator_token(), 258);
  EXPECT_EQ(vocabulary.encode("he he"), (Ids{256, 257}));
  EXPECT_EQ(vocabulary.decode(Ids{256, 257, 258}), "he he<|endoftext|>");
}

}  // namespace
}  // namespace polaron

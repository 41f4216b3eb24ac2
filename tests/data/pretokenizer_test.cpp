#include "data/pretokenizer.h"

#include <gtest/gtest.h>

#include "shard_files.h"
#include "support/errors.h"

namespace polaron {
namespace {

using namespace testing_data;
using test::contains;
using test::error_of;
using Pieces = std::vector<std::string_view>;

const PreTokenizer& gpt2() {
  static const PreTokenizer splitter(R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                                     "test");
  return splitter;
}

TEST(PreTokenizer, splits_words_numbers_contractions_and_space) {
  EXPECT_EQ(gpt2().split("I've 12 naïve  cats!\n\n x"),
            (Pieces{"I", "'ve", " 12", " naïve", " ", " cats", "!", "\n\n", " x"}));
  EXPECT_EQ(gpt2().split(""), Pieces{});
}

TEST(PreTokenizer, white_space_is_that_of_current_unicode) {
  // U+0085 and U+3000 are white space; U+180E and U+200B are not, so that they join the space before them.
  EXPECT_EQ(gpt2().split("a\u0085b"), (Pieces{"a", "\u0085", "b"}));
  EXPECT_EQ(gpt2().split("a \u3000b"), (Pieces{"a", " ", "\u3000", "b"}));
  EXPECT_EQ(gpt2().split("a \u200bb"), (Pieces{"a", " \u200b", "b"}));
  EXPECT_EQ(gpt2().split("a \u180e\u180eb"), (Pieces{"a", " \u180e\u180e", "b"}));
}

TEST(PreTokenizer, what_does_not_match_is_a_piece_of_its_own) {
  const PreTokenizer digits("[0-9]+", "test");
  EXPECT_EQ(digits.split("ab12cd345"), (Pieces{"ab", "12", "cd", "345"}));
  EXPECT_EQ(digits.split("12ab"), (Pieces{"12", "ab"}));
  EXPECT_EQ(digits.split("ab"), (Pieces{"ab"}));
}

TEST(PreTokenizer, bytes_that_are_not_utf8_lie_between_matches) {
  EXPECT_EQ(gpt2().split("ab\xff\xfe cd"), (Pieces{"ab", "\xff\xfe", " cd"}));
  EXPECT_EQ(gpt2().split("\xe4\xba"), (Pieces{"\xe4\xba"}));
}

TEST(PreTokenizer, an_empty_match_splits_nothing) {
  const PreTokenizer maybe_x("x*", "test");
  EXPECT_EQ(maybe_x.split("ab\u5317xxc"), (Pieces{"ab\u5317", "xx", "c"}));
}

TEST(PreTokenizer, error_names_the_file_and_the_place_in_the_pattern) {
  const auto message = error_of(Exit::data, [] { PreTokenizer("a(b", "vocabulary.json"); });
  EXPECT_TRUE(contains(message, "vocabulary.json"));
  EXPECT_TRUE(contains(message, "offset 3"));
}

}  // namespace
}  // namespace polaron

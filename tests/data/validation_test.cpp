#include "data/validation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "shard_files.h"
#include "support/errors.h"

namespace polaron {
namespace {

using namespace testing_data;
using test::contains;
using test::error_of;

// Shards of 10, 1, 0 and 23 tokens: 9 + 0 + 0 + 22 = 31 targets.
class ValidationTest : public ::testing::Test {
 protected:
  ValidationTest() {
    write_shard(folder_.file("validation_0.bin"), counting(0, 10));
    write_shard(folder_.file("validation_1.bin"), counting(500, 1));
    write_shard(folder_.file("validation_2.bin"), {});
    write_shard(folder_.file("validation_3.bin"), counting(1000, 23));
  }

  ValidationOptions options() const {
    ValidationOptions options;
    options.pattern = folder_.file("validation_*.bin");
    options.sequence_length = 4;
    options.micro_batch = 2;
    options.vocabulary_size = 2000;
    return options;
  }

  TemporaryFolder folder_;
};

// Each target with the number of inputs before it in its row: what its loss depends on.
using Prediction = std::pair<std::int32_t, std::int32_t>;

std::vector<Prediction> predictions(ValidationOptions options) {
  std::vector<Prediction> all;
  std::set<std::int64_t> rounds;
  for (options.rank = 0; options.rank < options.processes; ++options.rank) {
    ValidationReader reader(options);
    std::int64_t batches = 0;
    while (const auto batch = reader.next()) {
      ++batches;
      std::int64_t counted = 0;
      for (std::size_t i = 0; i < batch->targets.size(); ++i) {
        if (batch->targets[i] < 0) continue;
        ++counted;
        EXPECT_EQ(batch->targets[i], batch->tokens[i] + 1);
        all.emplace_back(batch->targets[i], static_cast<std::int32_t>(i % options.sequence_length));
      }
      EXPECT_EQ(counted, batch->target_count);
    }
    EXPECT_EQ(batches, reader.micro_batches());
    rounds.insert(batches);
  }
  EXPECT_EQ(rounds.size(), 1U) << "processes disagree about the number of micro-batches";
  std::sort(all.begin(), all.end());
  return all;
}

TEST_F(ValidationTest, covers_every_target_once_tails_included) {
  const auto all = predictions(options());
  ASSERT_EQ(all.size(), 31U);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(all[i], Prediction(i + 1, i % 4));
  for (int i = 0; i < 22; ++i) EXPECT_EQ(all[9 + i], Prediction(1001 + i, i % 4));
}

TEST_F(ValidationTest, gives_exactly_the_targets_asked_for_whatever_the_split) {
  for (const std::int64_t tokens : {1, 3, 4, 5, 8, 9, 10, 13, 30, 31}) {
    auto asked = options();
    asked.tokens = tokens;
    const auto expected = predictions(asked);
    ASSERT_EQ(static_cast<std::int64_t>(expected.size()), tokens);
    for (const int processes : {1, 2, 3, 5}) {
      for (const std::int64_t micro_batch : {1, 2, 3, 16}) {
        asked.processes = processes;
        asked.micro_batch = micro_batch;
        EXPECT_EQ(predictions(asked), expected)
            << tokens << " tokens, " << processes << " processes, micro-batch " << micro_batch;
      }
    }
  }
}

TEST_F(ValidationTest, says_when_the_files_hold_fewer_targets_than_asked) {
  auto asked = options();
  asked.tokens = 32;
  const ValidationReader reader(asked);
  EXPECT_EQ(reader.shortened_note("tokens"), "tokens is 32, but " + asked.pattern + " holds 31: using all of them.");
  EXPECT_EQ(reader.tokens(), 31);
  EXPECT_EQ(reader.available(), 31);
  asked.tokens = 31;
  EXPECT_EQ(ValidationReader(asked).shortened_note("tokens"), "");
  asked.tokens = 0;
  EXPECT_EQ(ValidationReader(asked).shortened_note("tokens"), "");
  EXPECT_EQ(ValidationReader(asked).tokens(), 31);
}

TEST_F(ValidationTest, rewind_repeats_the_same_batches) {
  ValidationReader reader(options());
  const auto first = reader.next();
  while (reader.next()) {
  }
  EXPECT_FALSE(reader.next().has_value());
  reader.rewind();
  const auto again = reader.next();
  ASSERT_TRUE(first && again);
  EXPECT_EQ(first->tokens, again->tokens);
  EXPECT_EQ(first->targets, again->targets);
}

TEST_F(ValidationTest, rows_without_targets_hold_valid_tokens) {
  auto wide = options();
  wide.micro_batch = 16;
  ValidationReader reader(wide);
  const auto batch = reader.next();
  ASSERT_TRUE(batch);
  EXPECT_EQ(batch->target_count, 31);
  for (std::size_t i = 0; i < batch->tokens.size(); ++i) {
    EXPECT_GE(batch->tokens[i], 0);
    EXPECT_LT(batch->tokens[i], 2000);
  }
}

TEST_F(ValidationTest, marks_where_documents_start) {
  write_shard(folder_.file("documents.bin"), {9, 1, 9, 2, 3, 9, 4});
  auto masked = options();
  masked.pattern = folder_.file("documents.bin");
  masked.document_mask = true;
  masked.separator_token = 9;
  const auto batch = ValidationReader(masked).next();
  ASSERT_TRUE(batch);
  EXPECT_EQ(batch->document_start, (std::vector<std::int32_t>{0, 0, 2, 2, 0, 1, 1, 1}));
}

TEST_F(ValidationTest, errors_are_those_of_the_loader) {
  auto wrong = options();
  wrong.vocabulary_size = 1010;
  const auto message = error_of(Exit::data, [&] { predictions(wrong); });
  EXPECT_TRUE(contains(message, "validation_3.bin"));
  EXPECT_TRUE(contains(message, "token id 1010 at offset " + std::to_string(1024 + 2 * 10)));
  wrong = options();
  wrong.tokens = -1;
  error_of(Exit::usage, [&] { ValidationReader reader(wrong); });
  wrong = options();
  wrong.micro_batch = 0;
  error_of(Exit::usage, [&] { ValidationReader reader(wrong); });
  wrong = options();
  wrong.pattern = folder_.file("validation_[12].bin");
  EXPECT_TRUE(
      contains(error_of(Exit::data, [&] { ValidationReader reader(wrong); }), "2 files without a token to predict"));
}

}  // namespace
}  // namespace polaron

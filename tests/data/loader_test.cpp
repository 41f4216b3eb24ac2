#include "data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>

#include "shard_files.h"
#include "support/errors.h"

namespace polaron {
namespace {

using namespace testing_data;
using test::contains;
using test::error_of;

// Three shards of 21, 30 and 9 windows of 4 tokens, with tails of 3, 0 and 2 unused tokens; every token tells its
// place.
class LoaderTest : public ::testing::Test {
 protected:
  LoaderTest() {
    write_shard(folder_.file("train_0.bin"), counting(0, 21 * 4 + 1 + 3));
    write_shard(folder_.file("train_1.bin"), counting(1000, 30 * 4 + 1));
    write_shard<std::uint32_t>(folder_.file("train_2.bin"), counting(2000, 9 * 4 + 1 + 2));
  }

  LoaderOptions options() const {
    LoaderOptions options;
    options.pattern = folder_.file("train_*.bin");
    options.sequence_length = 4;
    options.global_batch = 12;
    options.micro_batch = 12;
    options.seed = 42;
    options.vocabulary_size = 3000;
    return options;
  }

  TemporaryFolder folder_;
};
constexpr std::int64_t windows = 60;

std::vector<std::int32_t> take(Loader& loader, std::int64_t micro_batches) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < micro_batches; ++i) {
    const Batch batch = loader.next();
    tokens.insert(tokens.end(), batch.tokens.begin(), batch.tokens.end());
  }
  return tokens;
}

// The tokens of `global_batches` global batches, put together from what each process gets.
std::vector<std::int32_t> take_all(LoaderOptions options, std::int64_t global_batches, LoaderPosition from = {}) {
  std::vector<std::unique_ptr<Loader>> loaders;
  for (options.rank = 0; options.rank < options.processes; ++options.rank) {
    loaders.push_back(std::make_unique<Loader>(options, from));
  }
  std::vector<std::int32_t> tokens;
  for (std::int64_t g = 0; g < global_batches; ++g) {
    for (const auto& loader : loaders) {
      const auto slice = take(*loader, loader->micro_batches_per_global_batch());
      tokens.insert(tokens.end(), slice.begin(), slice.end());
    }
  }
  return tokens;
}

// The first token of each window, which names it.
std::vector<std::int32_t> firsts(const std::vector<std::int32_t>& tokens) {
  std::vector<std::int32_t> result;
  for (std::size_t i = 0; i < tokens.size(); i += 4) result.push_back(tokens[i]);
  return result;
}

TEST_F(LoaderTest, targets_are_the_tokens_that_follow) {
  Loader loader(options());
  for (int i = 0; i < 20; ++i) {
    const Batch batch = loader.next();
    ASSERT_EQ(batch.sequences, 12);
    ASSERT_EQ(batch.length, 4);
    ASSERT_EQ(batch.tokens.size(), 48U);
    ASSERT_EQ(batch.targets.size(), 48U);
    EXPECT_EQ(batch.target_count, 48);
    EXPECT_TRUE(batch.document_start.empty());
    for (std::size_t t = 0; t < 48; ++t) {
      ASSERT_EQ(batch.targets[t], batch.tokens[t] + 1);
      if (t % 4 != 0) {
        ASSERT_EQ(batch.tokens[t], batch.tokens[t - 1] + 1);
      }
    }
  }
}

TEST_F(LoaderTest, counts_windows_and_leaves_out_tails) {
  const Loader loader(options());
  EXPECT_EQ(loader.sequences_per_epoch(), windows);
  EXPECT_EQ(loader.tokens_per_epoch(), windows * 4);
}

TEST_F(LoaderTest, a_window_needs_one_token_more_than_its_length) {
  write_shard(folder_.file("exact.bin"), counting(0, 8));  // 8 tokens: one window of 4 inputs, not two
  auto one = options();
  one.pattern = folder_.file("exact.bin");
  one.global_batch = one.micro_batch = 1;
  EXPECT_EQ(Loader(one).sequences_per_epoch(), 1);
  write_shard(folder_.file("exact.bin"), counting(0, 9));
  EXPECT_EQ(Loader(one).sequences_per_epoch(), 2);
}

TEST_F(LoaderTest, without_shuffling_goes_through_the_files_in_order_and_starts_again) {
  auto ordered = options();
  ordered.shuffle = false;
  std::vector<std::int32_t> expected;
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (int i = 0; i < 21; ++i) expected.push_back(4 * i);
    for (int i = 0; i < 30; ++i) expected.push_back(1000 + 4 * i);
    for (int i = 0; i < 9; ++i) expected.push_back(2000 + 4 * i);
  }
  EXPECT_EQ(firsts(take_all(ordered, 10)), expected);
}

TEST_F(LoaderTest, every_epoch_visits_every_window_once_in_another_order) {
  const auto order = firsts(take_all(options(), 15));  // three epochs
  std::set<std::vector<std::int32_t>> orders;
  for (int epoch = 0; epoch < 3; ++epoch) {
    const std::vector<std::int32_t> visited(order.begin() + epoch * windows, order.begin() + (epoch + 1) * windows);
    EXPECT_EQ(std::set<std::int32_t>(visited.begin(), visited.end()).size(), static_cast<std::size_t>(windows));
    EXPECT_FALSE(std::is_sorted(visited.begin(), visited.end()));
    orders.insert(visited);
  }
  EXPECT_EQ(orders.size(), 3U);
}

TEST_F(LoaderTest, another_seed_is_another_order) {
  auto other = options();
  other.seed = 43;
  EXPECT_NE(take_all(options(), 5), take_all(other, 5));
  EXPECT_EQ(take_all(options(), 5), take_all(options(), 5));
}

TEST_F(LoaderTest, batches_straddle_epochs_without_loss) {
  auto straddling = options();
  straddling.global_batch = straddling.micro_batch = 7;  // 60 windows are no multiple of 7
  const auto order = firsts(take_all(straddling, 17));   // 119 sequences: the first epoch and 59 windows of the second
  const std::set<std::int32_t> first(order.begin(), order.begin() + windows);
  const std::set<std::int32_t> second(order.begin() + windows, order.end());
  EXPECT_EQ(first.size(), 60U);
  EXPECT_EQ(second.size(), 59U);
}

TEST_F(LoaderTest, global_batch_is_the_same_for_any_number_of_processes_and_any_micro_batch) {
  const auto expected = take_all(options(), 11);
  for (const int processes : {1, 2, 3, 4, 6, 12}) {
    for (const std::int64_t micro_batch : {1, 2, 3, 4, 6, 12}) {
      if (12 % (processes * micro_batch) != 0) continue;
      auto split = options();
      split.processes = processes;
      split.micro_batch = micro_batch;
      EXPECT_EQ(take_all(split, 11), expected) << processes << " processes, micro-batch " << micro_batch;
    }
  }
}

TEST_F(LoaderTest, resumes_where_it_stopped_on_any_number_of_processes) {
  const auto straight = take_all(options(), 14);
  for (const std::int64_t stop : {0, 1, 4, 5, 6, 13}) {  // 5 global batches are one epoch
    Loader before(options());
    auto tokens = take(before, stop);
    EXPECT_EQ(before.position().global_batches, stop);
    auto after = options();
    after.processes = 3;
    after.micro_batch = 2;
    const auto rest = take_all(after, 14 - stop, before.position());
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    EXPECT_EQ(tokens, straight) << "stopped after " << stop;
  }
}

TEST_F(LoaderTest, position_counts_whole_global_batches_alone) {
  auto split = options();
  split.micro_batch = 4;
  Loader loader(split, {4});
  for (const std::int64_t expected : {4, 4, 5, 5, 5, 6}) {
    loader.next();
    EXPECT_EQ(loader.position().global_batches, expected);
  }
}

TEST_F(LoaderTest, epoch_is_that_of_the_next_global_batch) {
  Loader loader(options());
  for (int batch = 0; batch < 11; ++batch) {
    EXPECT_EQ(loader.epoch(), batch / 5);
    loader.next();
  }
}

TEST_F(LoaderTest, a_far_position_is_reached_at_once) {
  Loader loader(options(), {1'000'000'000'000});
  EXPECT_EQ(loader.next().target_count, 48);
  error_of(Exit::data, [&] { Loader(options(), {-1}); });
}

TEST_F(LoaderTest, marks_where_documents_start) {
  write_shard(folder_.file("documents.bin"), {9, 1, 2, 9, 9, 3, 4, 5, 6, 9, 7, 8, 1});
  auto masked = options();
  masked.pattern = folder_.file("documents.bin");
  masked.shuffle = false;
  masked.sequence_length = 6;
  masked.global_batch = masked.micro_batch = 2;
  masked.document_mask = true;
  masked.separator_token = 9;
  Loader loader(masked);
  const Batch batch = loader.next();
  EXPECT_EQ(batch.tokens, (std::vector<std::int32_t>{9, 1, 2, 9, 9, 3, 4, 5, 6, 9, 7, 8}));
  EXPECT_EQ(batch.document_start, (std::vector<std::int32_t>{0, 0, 0, 3, 4, 4, 0, 0, 0, 3, 3, 3}));
}

TEST_F(LoaderTest, error_names_file_and_offset_of_an_id_outside_the_vocabulary) {
  auto ids = counting(0, 41);
  ids[33] = 3000;
  write_shard(folder_.file("bad.bin"), ids);
  auto bad = options();
  bad.pattern = folder_.file("bad.bin");
  bad.shuffle = false;
  bad.global_batch = bad.micro_batch = 2;
  Loader loader(bad);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(loader.next().target_count, 8);  // what comes before it is handed out
  for (int call = 0; call < 2; ++call) {
    const auto message = error_of(Exit::data, [&] { loader.next(); });
    EXPECT_TRUE(contains(message, bad.pattern));
    EXPECT_TRUE(contains(message, "token id 3000 at offset " + std::to_string(1024 + 2 * 33)));
    EXPECT_TRUE(contains(message, "vocabulary of 3000"));
  }
  bad.vocabulary_size = 3001;
  EXPECT_EQ(take_all(bad, 5).size(), 40U);
}

TEST_F(LoaderTest, error_names_an_id_that_is_a_target_alone) {
  write_shard<std::uint32_t>(folder_.file("bad.bin"), {0, 1, 2, 3, 0x80000000});
  auto bad = options();
  bad.pattern = folder_.file("bad.bin");
  bad.global_batch = bad.micro_batch = 1;
  Loader loader(bad);
  const auto message = error_of(Exit::data, [&] { loader.next(); });
  EXPECT_TRUE(contains(message, "token id 2147483648 at offset " + std::to_string(1024 + 4 * 4)));
}

TEST_F(LoaderTest, error_counts_what_is_missing_for_one_global_batch) {
  auto large = options();
  large.global_batch = large.micro_batch = 61;
  const auto message = error_of(Exit::data, [&] { Loader loader(large); });
  EXPECT_TRUE(contains(message, "3 files with 248 tokens make 60 sequences of 4 tokens"));
  EXPECT_TRUE(contains(message, "61"));
}

TEST_F(LoaderTest, error_names_figures_that_do_not_divide) {
  auto uneven = options();
  uneven.processes = 2;
  uneven.micro_batch = 4;
  const auto message = error_of(Exit::usage, [&] { Loader loader(uneven); });
  EXPECT_TRUE(contains(message, "global batch of 12"));
  EXPECT_TRUE(contains(message, "2 processes"));
  EXPECT_TRUE(contains(message, "micro-batches of 4"));
  uneven.micro_batch = std::int64_t{1} << 62;
  error_of(Exit::usage, [&] { Loader loader(uneven); });
}

TEST_F(LoaderTest, refuses_sizes_that_are_not_positive_and_a_mask_without_a_separator) {
  for (const auto member : {&LoaderOptions::sequence_length, &LoaderOptions::global_batch, &LoaderOptions::micro_batch,
                            &LoaderOptions::vocabulary_size}) {
    for (const std::int64_t value : {0, -1}) {
      auto wrong = options();
      wrong.*member = value;
      error_of(Exit::usage, [&] { Loader loader(wrong); });
    }
  }
  auto masked = options();
  masked.document_mask = true;
  EXPECT_TRUE(contains(error_of(Exit::usage, [&] { Loader loader(masked); }), "separator"));
}

TEST_F(LoaderTest, ends_at_once_whether_batches_were_taken_or_not) {
  for (int i = 0; i < 200; ++i) {
    Loader loader(options());
    for (int taken = 0; taken < i % 5; ++taken) loader.next();
  }
}

TEST_F(LoaderTest, fingerprint_changes_with_the_data_and_not_with_processes) {
  const auto expected = Loader(options()).fingerprint();
  auto split = options();
  split.processes = 2;
  split.micro_batch = 3;
  EXPECT_EQ(Loader(split).fingerprint(), expected);
  auto seeded = options();
  seeded.seed = 1;
  EXPECT_NE(Loader(seeded).fingerprint(), expected);
  auto batched = options();
  batched.global_batch = 24;
  EXPECT_NE(Loader(batched).fingerprint(), expected);
  write_shard<std::uint32_t>(folder_.file("train_2.bin"), counting(2000, 9 * 4 + 2));
  EXPECT_NE(Loader(options()).fingerprint(), expected);
}

}  // namespace
}  // namespace polaron

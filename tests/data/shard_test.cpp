#include "data/shard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>

#include "shard_files.h"
#include "support/errors.h"

namespace polaron {
namespace {

using namespace testing_data;
using test::contains;
using test::error_of;

std::vector<std::int32_t> read_all(const Shard& shard) {
  std::vector<std::int32_t> ids(shard.tokens());
  shard.read(0, ids);
  return ids;
}

std::string error_of_shard(const std::string& path) {
  return error_of(Exit::data, [&] { Shard shard(path); });
}

// A good shard of three tokens with one header word replaced.
std::string with_header_word(int index, std::int32_t value) {
  std::string bytes = shard_bytes<std::uint16_t>({1, 2, 3});
  std::memcpy(bytes.data() + 4 * index, &value, 4);
  return bytes;
}

TEST(Shard, reads_16_bit_tokens) {
  const TemporaryFolder folder;
  write_shard<std::uint16_t>(folder.file("a.bin"), {0, 7, 50256, 65535});
  const Shard shard(folder.file("a.bin"));
  EXPECT_EQ(shard.bytes_per_token(), 2);
  EXPECT_EQ(read_all(shard), (std::vector<std::int32_t>{0, 7, 50256, 65535}));
  EXPECT_EQ(shard.byte_offset(3), 1024 + 6);
}

TEST(Shard, reads_32_bit_tokens) {
  const TemporaryFolder folder;
  write_shard<std::uint32_t>(folder.file("a.bin"), {5, 128'000, 0x7fffffff, 0x80000001});
  const Shard shard(folder.file("a.bin"));
  EXPECT_EQ(shard.bytes_per_token(), 4);
  // What no vocabulary can hold must not turn into an id that one can.
  EXPECT_EQ(read_all(shard), (std::vector<std::int32_t>{5, 128'000, 0x7fffffff, -0x7fffffff}));
  EXPECT_EQ(shard.byte_offset(3), 1024 + 12);
}

TEST(Shard, reads_any_part_and_nothing_outside) {
  const TemporaryFolder folder;
  write_shard(folder.file("a.bin"), counting(100, 50));
  const Shard shard(folder.file("a.bin"));
  std::vector<std::int32_t> part(3);
  shard.read(47, part);
  EXPECT_EQ(part, (std::vector<std::int32_t>{147, 148, 149}));
  shard.read(50, std::span<std::int32_t>());
  EXPECT_THROW(shard.read(48, part), std::logic_error);
  EXPECT_THROW(shard.read(-1, part), std::logic_error);
}

TEST(Shard, may_be_empty) {
  const TemporaryFolder folder;
  write_shard(folder.file("a.bin"), {});
  EXPECT_EQ(Shard(folder.file("a.bin")).tokens(), 0);
}

TEST(Shard, moves) {
  const TemporaryFolder folder;
  write_shard(folder.file("a.bin"), {1, 2});
  write_shard(folder.file("b.bin"), {3, 4, 5});
  Shard a(folder.file("a.bin"));
  Shard b(folder.file("b.bin"));
  Shard c(std::move(a));
  EXPECT_EQ(read_all(c), (std::vector<std::int32_t>{1, 2}));
  c = std::move(b);
  EXPECT_EQ(read_all(c), (std::vector<std::int32_t>{3, 4, 5}));
}

TEST(Shard, error_names_a_missing_file) {
  const auto message = error_of_shard("/nonexistent/folder/a.bin");
  EXPECT_TRUE(contains(message, "/nonexistent/folder/a.bin"));
  EXPECT_TRUE(contains(message, "No such file"));
}

TEST(Shard, error_tells_a_folder_from_a_file) {
  const TemporaryFolder folder;
  EXPECT_TRUE(contains(error_of_shard(folder.file("")), "*.bin"));
}

TEST(Shard, error_names_where_a_short_header_ends) {
  const TemporaryFolder folder;
  const auto path = folder.file("a.bin");
  for (const std::size_t size : {0, 3, 1023}) {
    write_bytes(path, shard_bytes<std::uint16_t>({1, 2, 3}).substr(0, size));
    const auto message = error_of_shard(path);
    EXPECT_TRUE(contains(message, path));
    EXPECT_TRUE(contains(message, "offset " + std::to_string(size)));
  }
}

TEST(Shard, error_names_a_wrong_magic) {
  const TemporaryFolder folder;
  const auto path = folder.file("a.bin");
  write_bytes(path, with_header_word(0, 20240521));
  const auto message = error_of_shard(path);
  EXPECT_TRUE(contains(message, path));
  EXPECT_TRUE(contains(message, "offset 0 is 20240521"));
  EXPECT_TRUE(contains(message, "prepare_text.py"));
}

TEST(Shard, error_names_a_wrong_version) {
  const TemporaryFolder folder;
  const auto path = folder.file("a.bin");
  for (const std::int32_t version : {0, 2, 7, -1}) {  // 7 is right for the other magic alone
    write_bytes(path, with_header_word(1, version));
    EXPECT_TRUE(contains(error_of_shard(path), "offset 4 is " + std::to_string(version)));
  }
}

TEST(Shard, error_names_a_negative_count) {
  const TemporaryFolder folder;
  const auto path = folder.file("a.bin");
  write_bytes(path, with_header_word(2, -5));
  EXPECT_TRUE(contains(error_of_shard(path), "offset 8 is negative (-5)"));
}

TEST(Shard, error_names_where_a_truncated_tail_ends) {
  const TemporaryFolder folder;
  const auto path = folder.file("a.bin");
  const auto whole = shard_bytes<std::uint32_t>({1, 2, 3});
  for (std::size_t missing = 1; missing <= 12; ++missing) {
    write_bytes(path, whole.substr(0, whole.size() - missing));
    const auto message = error_of_shard(path);
    EXPECT_TRUE(contains(message, "ends at offset " + std::to_string(1036 - missing)));
    EXPECT_TRUE(contains(message, "promises 3 tokens"));
  }
}

TEST(Shard, error_names_where_trailing_bytes_start) {
  const TemporaryFolder folder;
  const auto path = folder.file("a.bin");
  write_bytes(path, shard_bytes<std::uint16_t>({1, 2, 3}) + "x");
  EXPECT_TRUE(contains(error_of_shard(path), "1 bytes follow the 3 tokens that the header promises, from offset 1030"));
}

TEST(ExpandPattern, sorts_files_and_names_a_pattern_without_any) {
  const TemporaryFolder folder;
  for (const char* name : {"train_000010.bin", "train_000002.bin", "train_000001.bin", "validation_000000.bin"}) {
    write_bytes(folder.file(name), "");
  }
  EXPECT_EQ(expand_pattern(folder.file("train_*.bin")),
            (std::vector<std::string>{folder.file("train_000001.bin"), folder.file("train_000002.bin"),
                                      folder.file("train_000010.bin")}));
  EXPECT_EQ(expand_pattern(folder.file("train_000002.bin")).size(), 1U);
  const auto pattern = folder.file("nothing_*.bin");
  EXPECT_TRUE(contains(error_of(Exit::data, [&] { expand_pattern(pattern); }), pattern));
  error_of(Exit::data, [] { expand_pattern(""); });
}

}  // namespace
}  // namespace polaron

#include "data/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "base/error.h"

namespace polaron {
namespace {

void check_ids(const SequenceFormat& format, const Shard& shard, std::int64_t position,
               std::span<const std::int32_t> ids) {
  const auto size = static_cast<std::uint64_t>(format.vocabulary_size);
  // Compared unsigned: an id over 2^31 - 1 has arrived as a negative number.
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [&](std::int32_t id) { return static_cast<std::uint32_t>(id) >= size; });
  if (bad == ids.end()) return;
  throw Error(Exit::data,
              fmt::format("{}: token id {} at offset {} does not fit the model's vocabulary of {} entries. Use "
                          "shards made with the model's tokenizer, or set the model's vocabulary size to the "
                          "tokenizer's.",
                          shard.path(), static_cast<std::uint32_t>(*bad),
                          shard.byte_offset(position + (bad - ids.begin())), format.vocabulary_size));
}

}  // namespace

void check_format(const SequenceFormat& format) {
  if (format.length < 1) throw Error(Exit::usage, fmt::format("sequence length {}: at least 1.", format.length));
  if (format.vocabulary_size < 1) {
    throw Error(Exit::usage, fmt::format("vocabulary size {}: at least 1.", format.vocabulary_size));
  }
  if (format.document_mask && format.separator_token < 0) {
    throw Error(
        Exit::usage,
        "document masking needs the separator token that opens each document, and none is known: the shards have "
        "no vocabulary.json beside them that names one. Set the separator token, or switch the mask off.");
  }
}

Batch make_batch(std::int64_t sequences, const SequenceFormat& format) {
  Batch batch;
  batch.sequences = sequences;
  batch.length = format.length;
  const auto size = static_cast<std::size_t>(sequences * format.length);
  batch.tokens.assign(size, 0);
  batch.targets.assign(size, -1);
  if (format.document_mask) batch.document_start.assign(size, 0);
  return batch;
}

void fill_row(Batch& batch, std::int64_t row, const SequenceFormat& format, const Shard& shard, std::int64_t position,
              std::int64_t targets) {
  if (targets == 0) return;
  const auto length = static_cast<std::size_t>(format.length);
  const auto count = static_cast<std::size_t>(targets);
  const auto tokens = std::span(batch.tokens).subspan(static_cast<std::size_t>(row) * length, length);
  const auto next = std::span(batch.targets).subspan(static_cast<std::size_t>(row) * length, length);
  shard.read(position, tokens.first(count));
  shard.read(position + 1, next.first(count));
  check_ids(format, shard, position, tokens.first(1));
  check_ids(format, shard, position + 1, next.first(count));
  batch.target_count += targets;
  if (!format.document_mask) return;
  const auto starts = std::span(batch.document_start).subspan(static_cast<std::size_t>(row) * length, length);
  std::int32_t start = 0;
  for (std::size_t t = 0; t < length; ++t) {
    if (t < count && tokens[t] == format.separator_token) start = static_cast<std::int32_t>(t);
    starts[t] = start;
  }
}

}  // namespace polaron

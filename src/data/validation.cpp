#include "data/validation.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "base/error.h"

namespace polaron {

ValidationReader::ValidationReader(ValidationOptions options)
    : options_(std::move(options)),
      format_{options_.sequence_length, options_.vocabulary_size, options_.document_mask, options_.separator_token} {
  check_format(format_);
  if (options_.micro_batch < 1) {
    throw Error(Exit::usage, fmt::format("micro-batch of {} sequences: at least 1.", options_.micro_batch));
  }
  if (options_.tokens < 0) {
    throw Error(Exit::usage, fmt::format("{} validation tokens: at least 1, or 0 for all.", options_.tokens));
  }
  if (options_.processes < 1 || options_.rank < 0 || options_.rank >= options_.processes) {
    throw std::logic_error(fmt::format("rank {} of {} processes", options_.rank, options_.processes));
  }
  shards_ = open_shards(options_.pattern);
  std::int64_t sequences = 0;
  for (const Shard& shard : shards_) {
    const std::int64_t targets = std::max<std::int64_t>(0, shard.tokens() - 1);
    sequences += (targets + format_.length - 1) / format_.length;
    available_ += targets;
    sequence_ends_.push_back(sequences);
    target_ends_.push_back(available_);
  }
  if (available_ == 0) {
    throw Error(
        Exit::data,
        fmt::format("'{}': {} file{} without a token to predict (a file of n tokens has n - 1). Give more data.",
                    options_.pattern, shards_.size(), shards_.size() == 1 ? "" : "s"));
  }
  tokens_ = options_.tokens == 0 ? available_ : std::min(options_.tokens, available_);

  // Only sequences with a target among the first `tokens_` are dealt out.
  const auto last = std::lower_bound(target_ends_.begin(), target_ends_.end(), tokens_) - target_ends_.begin();
  const std::int64_t within = tokens_ - (last == 0 ? 0 : target_ends_[last - 1]);
  const std::int64_t used = (last == 0 ? 0 : sequence_ends_[last - 1]) + (within + format_.length - 1) / format_.length;
  const std::int64_t per_round = options_.micro_batch * options_.processes;
  micro_batches_ = (used + per_round - 1) / per_round;
}

std::string ValidationReader::shortened_note(const std::string& setting) const {
  if (options_.tokens <= available_) return {};
  return fmt::format("{} is {}, but {} holds {}: using all of them.", setting, options_.tokens, options_.pattern,
                     available_);
}

std::optional<Batch> ValidationReader::next() {
  if (next_ == micro_batches_) return std::nullopt;
  Batch batch = make_batch(options_.micro_batch, format_);
  const std::int64_t first = (next_ * options_.processes + options_.rank) * options_.micro_batch;
  for (std::int64_t row = 0; row < options_.micro_batch; ++row) {
    const std::int64_t sequence = first + row;
    const auto slot = std::upper_bound(sequence_ends_.begin(), sequence_ends_.end(), sequence) - sequence_ends_.begin();
    if (slot == static_cast<std::int64_t>(shards_.size())) break;  // past the last sequence
    const std::int64_t position = (sequence - (slot == 0 ? 0 : sequence_ends_[slot - 1])) * format_.length;
    const std::int64_t targets_before = (slot == 0 ? 0 : target_ends_[slot - 1]) + position;
    if (targets_before >= tokens_) break;
    const std::int64_t targets =
        std::min({format_.length, shards_[slot].tokens() - 1 - position, tokens_ - targets_before});
    fill_row(batch, row, format_, shards_[slot], position, targets);
  }
  ++next_;
  return batch;
}

}  // namespace polaron

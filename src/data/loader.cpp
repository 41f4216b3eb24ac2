#include "data/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <utility>

#include "base/error.h"
#include "data/permutation.h"

namespace polaron {
namespace {

constexpr std::size_t prefetch_depth = 3;  // micro-batches kept ready; reading one is far quicker than training on it

[[noreturn]] void bad_usage(const std::string& message) { throw Error(Exit::usage, message); }

SequenceFormat checked_format(const LoaderOptions& options) {
  const SequenceFormat format{options.sequence_length, options.vocabulary_size, options.document_mask,
                              options.separator_token};
  check_format(format);
  if (options.micro_batch < 1) bad_usage(fmt::format("micro-batch of {} sequences: at least 1.", options.micro_batch));
  if (options.global_batch < 1)
    bad_usage(fmt::format("global batch of {} sequences: at least 1.", options.global_batch));
  if (options.processes < 1 || options.rank < 0 || options.rank >= options.processes) {
    throw std::logic_error(fmt::format("rank {} of {} processes", options.rank, options.processes));
  }
  // The first test also keeps the product from overflowing.
  const bool fits = options.micro_batch <= options.global_batch / options.processes;
  if (!fits || options.global_batch % (options.processes * options.micro_batch) != 0) {
    bad_usage(
        fmt::format("a global batch of {} sequences cannot be divided evenly among {} process{} in micro-batches of "
                    "{}: it must be a "
                    "multiple of {} x {}. Change the global batch or the micro-batch.",
                    options.global_batch, options.processes, options.processes == 1 ? "" : "es", options.micro_batch,
                    options.processes, options.micro_batch));
  }
  return format;
}

std::vector<std::int64_t> windows_per_shard(const LoaderOptions& options, const std::vector<Shard>& shards) {
  std::vector<std::int64_t> counts;
  std::int64_t windows = 0;
  std::int64_t tokens = 0;
  for (const Shard& shard : shards) {
    counts.push_back(std::max<std::int64_t>(0, shard.tokens() - 1) / options.sequence_length);
    windows += counts.back();
    tokens += shard.tokens();
  }
  if (windows < options.global_batch) {
    throw Error(
        Exit::data,
        fmt::format("'{}': {} file{} with {} tokens make {} sequences of {} tokens, fewer than one global batch of {} "
                    "sequences. Give more data, or a smaller batch or sequence length.",
                    options.pattern, shards.size(), shards.size() == 1 ? "" : "s", tokens, windows,
                    options.sequence_length, options.global_batch));
  }
  return counts;
}

}  // namespace

Loader::Loader(LoaderOptions options, LoaderPosition position)
    : options_(std::move(options)),
      format_(checked_format(options_)),
      shards_(open_shards(options_.pattern)),
      order_(windows_per_shard(options_, shards_), options_.shuffle, options_.seed) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max() / options_.global_batch / 2;
  if (position.global_batches < 0 || position.global_batches > most) {
    throw Error(Exit::data, fmt::format("the data position {} is not a number of batches.", position.global_batches));
  }
  handed_out_ = position.global_batches * micro_batches_per_global_batch();
  thread_ = std::thread([this, first = handed_out_] { prefetch(first); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Loader::prefetch(std::int64_t micro_batch) {
  try {
    for (;; ++micro_batch) {
      Batch batch = read(micro_batch);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || ready_.size() < prefetch_depth; });
      if (stop_) return;
      ready_.push_back(std::move(batch));
      changed_.notify_all();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
    changed_.notify_all();
  }
}

Batch Loader::read(std::int64_t micro_batch) {
  const std::int64_t per_batch = micro_batches_per_global_batch();
  const std::int64_t slice = options_.global_batch / options_.processes;
  const std::int64_t first = (micro_batch / per_batch) * options_.global_batch + options_.rank * slice +
                             (micro_batch % per_batch) * options_.micro_batch;
  Batch batch = make_batch(options_.micro_batch, format_);
  for (std::int64_t row = 0; row < options_.micro_batch; ++row) {
    const auto window = order_.locate(first + row);
    fill_row(batch, row, format_, shards_[window.shard], window.index * format_.length, format_.length);
  }
  return batch;
}

Batch Loader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !ready_.empty() || failure_; });
  if (ready_.empty()) std::rethrow_exception(failure_);
  Batch batch = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  ++handed_out_;
  return batch;
}

LoaderPosition Loader::position() const { return {handed_out_ / micro_batches_per_global_batch()}; }

std::int64_t Loader::micro_batches_per_global_batch() const {
  return options_.global_batch / (options_.processes * options_.micro_batch);
}

std::int64_t Loader::epoch() const { return position().global_batches * options_.global_batch / order_.windows(); }

std::uint64_t Loader::fingerprint() const {
  std::uint64_t value = mix_key(options_.sequence_length, options_.global_batch, options_.shuffle,
                                options_.shuffle ? options_.seed : 0, shards_.size());
  for (const Shard& shard : shards_) {
    value = mix_key(value, shard.tokens(), shard.bytes_per_token());
    for (const char c : std::filesystem::path(shard.path()).filename().string()) {
      value = mix_key(value, static_cast<unsigned char>(c));
    }
  }
  return value;
}

}  // namespace polaron

#include "data/order.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "data/permutation.h"

namespace polaron {
namespace {

// Two families of keys, so that no shard's windows are permuted by the key that permutes the shards.
constexpr std::uint64_t shard_purpose = 1;
constexpr std::uint64_t window_purpose = 2;

}  // namespace

WindowOrder::WindowOrder(std::vector<std::int64_t> windows_per_shard, bool shuffle, std::uint64_t seed)
    : windows_per_shard_(std::move(windows_per_shard)), shuffle_(shuffle), seed_(seed) {
  for (const auto windows : windows_per_shard_) windows_ += windows;
  if (windows_ < 1) throw std::logic_error("no window to order");
}

void WindowOrder::enter_epoch(std::int64_t epoch) {
  const auto count = static_cast<std::int64_t>(windows_per_shard_.size());
  shards_.resize(windows_per_shard_.size());
  ends_.resize(windows_per_shard_.size());
  const Permutation order(count, mix_key(seed_, shard_purpose, epoch));
  std::int64_t end = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    shards_[i] = shuffle_ ? order(i) : i;
    end += windows_per_shard_[shards_[i]];
    ends_[i] = end;
  }
  epoch_ = epoch;
}

WindowOrder::Window WindowOrder::locate(std::int64_t sequence) {
  if (sequence < 0) throw std::logic_error("sequences are numbered from 0");
  const std::int64_t epoch = sequence / windows_;
  if (epoch != epoch_) enter_epoch(epoch);
  const std::int64_t place = sequence % windows_;
  const auto slot = std::upper_bound(ends_.begin(), ends_.end(), place) - ends_.begin();
  const std::int64_t shard = shards_[slot];
  const std::int64_t index = place - (ends_[slot] - windows_per_shard_[shard]);
  if (!shuffle_) return {shard, index};
  return {shard, Permutation(windows_per_shard_[shard], mix_key(seed_, window_purpose, epoch, shard))(index)};
}

}  // namespace polaron

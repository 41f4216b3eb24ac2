// In which order the windows of a set of shards are visited.
#pragma once

#include <cstdint>
#include <vector>

namespace polaron {

// A pure function from the number of a sequence (0, 1, ... over all epochs) to a window. Without shuffling the shards
// come in their order and the windows of each in theirs. With shuffling every epoch draws, from (seed, epoch), an order
// of the shards and an order of the windows within each shard. Nothing is stored but the current epoch's order of
// shards.
class WindowOrder {
 public:
  struct Window {
    std::int64_t shard;  // index into windows_per_shard
    std::int64_t index;  // 0 <= index < windows_per_shard[shard]
  };

  // Throws std::logic_error where there is no window at all.
  WindowOrder(std::vector<std::int64_t> windows_per_shard, bool shuffle, std::uint64_t seed);

  std::int64_t windows() const { return windows_; }  // of one epoch

  // The window of sequence number `sequence` >= 0. Not const and not thread-safe: it keeps the order of one epoch's
  // shards, so that calls for neighbouring sequences are cheap; the result depends on the argument alone.
  Window locate(std::int64_t sequence);

 private:
  void enter_epoch(std::int64_t epoch);

  std::vector<std::int64_t> windows_per_shard_;
  bool shuffle_;
  std::uint64_t seed_;
  std::int64_t windows_ = 0;
  std::int64_t epoch_ = -1;
  std::vector<std::int64_t> shards_;  // this epoch's order
  std::vector<std::int64_t> ends_;    // ends_[i]: windows in shards_[0 .. i]
};

}  // namespace polaron

// Byte-pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace polaron {

// The merges of a byte-level BPE (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016;
// on bytes as in GPT-2): of all adjacent pairs that have a rank, the one with the lowest (the leftmost of equals) is
// replaced by its token, again and again.
class BytePairMerges {
 public:
  // byte_tokens[b] is the id of the one-byte token b.
  explicit BytePairMerges(std::array<std::int32_t, 256> byte_tokens) : byte_tokens_(byte_tokens) {}

  // The next merge in rank: the pair (left, right) becomes `token`. A pair added before keeps its first rank.
  void add(std::int32_t left, std::int32_t right, std::int32_t token);

  // Appends the ids of `piece` to `ids`, in O(n log n) of its length.
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t token;
  };
  const Merge* find(std::int32_t left, std::int32_t right) const;

  std::array<std::int32_t, 256> byte_tokens_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // key: left << 32 | right
};

}  // namespace polaron

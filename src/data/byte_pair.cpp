#include "data/byte_pair.h"

#include <cstddef>
#include <functional>
#include <queue>
#include <tuple>

namespace polaron {
namespace {

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

// The piece as a doubly linked list, so that a merge moves nothing. A merged symbol stays at its left half's place; its
// right half's place is emptied (token -1).
struct Symbol {
  std::int32_t token;
  std::ptrdiff_t previous;
  std::ptrdiff_t next;  // one past the last symbol: the end
};

// A merge that was possible when it was queued: rank, place of the left symbol, and both tokens, to tell whether it
// still is.
using Candidate = std::tuple<std::int32_t, std::ptrdiff_t, std::int32_t, std::int32_t>;

}  // namespace

void BytePairMerges::add(std::int32_t left, std::int32_t right, std::int32_t token) {
  merges_.try_emplace(pair_key(left, right), Merge{static_cast<std::int32_t>(merges_.size()), token});
}

const BytePairMerges::Merge* BytePairMerges::find(std::int32_t left, std::int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairMerges::encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
  const auto end = static_cast<std::ptrdiff_t>(piece.size());
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (std::ptrdiff_t i = 0; i < end; ++i) {
    symbols.push_back({byte_tokens_[static_cast<unsigned char>(piece[i])], i - 1, i + 1});
  }

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;  // lowest rank, then leftmost, first
  const auto consider = [&](std::ptrdiff_t left) {
    if (left < 0 || symbols[left].next >= end) return;
    const std::int32_t a = symbols[left].token;
    const std::int32_t b = symbols[symbols[left].next].token;
    if (const Merge* merge = find(a, b)) queue.emplace(merge->rank, left, a, b);
  };
  for (std::ptrdiff_t i = 0; i + 1 < end; ++i) consider(i);

  while (!queue.empty()) {
    const auto [rank, left, a, b] = queue.top();
    queue.pop();
    Symbol& symbol = symbols[left];
    const std::ptrdiff_t right = symbol.next;
    if (symbol.token != a || right >= end || symbols[right].token != b) continue;  // changed since it was queued
    symbol.token = find(a, b)->token;
    symbol.next = symbols[right].next;
    symbols[right].token = -1;
    if (symbol.next < end) symbols[symbol.next].previous = left;
    consider(symbol.previous);
    consider(left);
  }
  for (std::ptrdiff_t i = 0; i < end; i = symbols[i].next) ids.push_back(symbols[i].token);
}

}  // namespace polaron

#include "model/window.h"

#include <algorithm>
#include <cmath>

namespace polaron {

std::int64_t window_blocks(const TransformerConfig& config, double progress) {
  const double x = progress;
  const double factor = 4 * x * x * x - 6 * x * x + 3 * x;
  const double tokens = std::max(static_cast<double>(config.window_final) * factor, 1.0);
  return static_cast<std::int64_t>(std::ceil(tokens / static_cast<double>(config.window_block)));
}

void block_window(std::span<const std::int32_t> document_start, std::int64_t block, std::int64_t window,
                  std::span<std::int32_t> first_key) {
  const auto length = static_cast<std::int64_t>(first_key.size());
  const auto start_of = [&](std::int64_t t) {
    return document_start.empty() ? 0 : static_cast<std::int64_t>(document_start[static_cast<std::size_t>(t)]);
  };
  for (std::int64_t i = 0; i * block < length; ++i) {
    const std::int64_t begin = i * block, end = std::min(begin + block, length);
    const std::int64_t start = start_of(begin);
    const std::int64_t first_of_document = start / block;
    std::int64_t first = 0;  // of the blocks that block i sees
    if (start_of(end - 1) == start) {
      const std::int64_t first_whole = (start + block - 1) / block, whole = i - first_whole;
      const bool begins_within = first_of_document < first_whole;
      first = begins_within && window - whole >= 2 ? first_of_document
                                                   : i - std::min(whole, std::max<std::int64_t>(window - 1, 0));
    } else {
      first = std::max(first_of_document, i - std::max<std::int64_t>(window - 1, 0));
    }
    for (std::int64_t t = begin; t < end; ++t) {
      first_key[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(std::max(start_of(t), first * block));
    }
  }
}

}  // namespace polaron

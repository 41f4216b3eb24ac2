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
  const std::int64_t earlier = std::max<std::int64_t>(window - 1, 0);  // blocks seen beside the row's own
  for (std::size_t t = 0; t < first_key.size(); ++t) {
    const std::int64_t own = static_cast<std::int64_t>(t) / block;
    const std::int64_t document = document_start.empty() ? 0 : document_start[t];
    first_key[t] = static_cast<std::int32_t>(std::max(document, (own - earlier) * block));
  }
}

}  // namespace polaron

// Attention windows that grow during a run, in whole blocks of tokens, as in the authors' modded models (their code
// takes it from KellerJordan/modded-nanogpt; docs/paper.md).
#pragma once

#include <cstdint>
#include <span>

#include "config/transformer_config.h"

namespace polaron {

// The window in blocks at a share `progress` in [0, 1] of the run, with x = progress: the smallest number of blocks
// that hold max((4x^3 - 6x^2 + 3x) window_final, 1) tokens.
std::int64_t window_blocks(const TransformerConfig& config, double progress);

// first_key[t]: the first key that row t of a sequence sees: of its own document, those in its own block and in the
// `window` - 1 blocks before (a window of 0 counts as 1). document_start [T]: where each row's document begins, in the
// sequence; empty: one document. The authors write this as a choice of blocks that are wholly of one document (FULL)
// and of blocks that share one (PARTIAL), so many of each; what is left after masking by documents is the same.
void block_window(std::span<const std::int32_t> document_start, std::int64_t block, std::int64_t window,
                  std::span<std::int32_t> first_key);

}  // namespace polaron

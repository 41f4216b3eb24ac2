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

// first_key[t]: the first key that row t of a sequence sees, of its window of so many blocks. document_start [T]: where
// each row's document begins, in the sequence; empty: one document. Beside its own block, which it always sees in part,
// a row of block i sees
//   - where all of block i is one document: the last window - 1 of the earlier blocks that are wholly of that document,
//     and the block in which the document begins where the window is larger than their number by two or more;
//   - where a document begins in block i: the last window - 1 earlier blocks back to the one where its first row's
//     document begins;
// and of these what is of its own document. The blocks seen are always consecutive.
void block_window(std::span<const std::int32_t> document_start, std::int64_t block, std::int64_t window,
                  std::span<std::int32_t> first_key);

}  // namespace polaron

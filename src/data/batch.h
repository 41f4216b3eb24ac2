// A micro-batch of tokens on the host, and how one is filled from a shard.
#pragma once

#include <cstdint>
#include <vector>

#include "data/shard.h"

namespace polaron {

// B sequences of T tokens. All arrays are row-major [B, T]; the caller owns them.
struct Batch {
  std::int64_t sequences = 0;                // B
  std::int64_t length = 0;                   // T
  std::vector<std::int32_t> tokens;          // [B*T] inputs
  std::vector<std::int32_t> targets;         // [B*T] the token after each input; -1 where there is none to predict
  std::vector<std::int32_t> document_start;  // [B*T] position in its sequence at which the row's document starts; empty
                                             // unless asked for
  std::int64_t target_count = 0;             // targets that are not -1
};

// How the tokens of a batch are read.
struct SequenceFormat {
  std::int64_t length = 0;            // T >= 1
  std::int64_t vocabulary_size = 0;   // ids at or over it are errors
  bool document_mask = false;         // fill document_start
  std::int32_t separator_token = -1;  // opens a document and belongs to it; needed for document_mask
};

// Throws Error(Exit::usage) for a length or vocabulary size under 1, or a document mask without a separator.
void check_format(const SequenceFormat& format);

// An empty batch (tokens 0, targets -1) of `sequences` rows; its document_start, where asked for, is all 0.
Batch make_batch(std::int64_t sequences, const SequenceFormat& format);

// Fills row `row` with the `targets` >= 0 (at most T) predictions that start at token `position` of the shard: reads
// targets + 1 tokens; what is left of the row stays as make_batch made it. Throws Error(Exit::data) that names file,
// offset, id and vocabulary size for an id outside the vocabulary.
void fill_row(Batch& batch, std::int64_t row, const SequenceFormat& format, const Shard& shard, std::int64_t position,
              std::int64_t targets);

}  // namespace polaron

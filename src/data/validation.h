// A fixed stretch of tokens to measure perplexity on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/batch.h"
#include "data/shard.h"

namespace polaron {

struct ValidationOptions {
  std::string pattern;                // glob of shard files
  std::int64_t sequence_length = 0;   // T
  std::int64_t micro_batch = 0;       // sequences of one next()
  std::int64_t tokens = 0;            // targets wanted, over all processes; 0: all that the files hold
  int rank = 0;                       // this process, 0 <= rank < processes
  int processes = 1;                  //
  std::int64_t vocabulary_size = 0;   // the model's
  bool document_mask = false;         // fill Batch::document_start
  std::int32_t separator_token = -1;  // opens each document; -1: none known
};

// The first `tokens` targets of the files in sorted order, each predicted in a window of T tokens whose bounds depend
// on the files and T alone: together the processes see exactly these targets, each once, with the same context, for any
// number of processes and any micro-batch. A shard's tail shorter than T is a window too; the rest of its row, what
// exceeds `tokens`, and rows past the last sequence have target -1. Every process makes the same number of
// micro-batches, so the last of some may have no target at all (target_count 0; it need not be evaluated).
class ValidationReader {
 public:
  // Throws as Loader's constructor does; also Error(Exit::data) where the files hold no target at all.
  explicit ValidationReader(ValidationOptions options);

  // The next micro-batch of this process, or nothing after the last one. Throws Error(Exit::data) where a token id does
  // not fit the vocabulary.
  std::optional<Batch> next();

  // Starts again with the first micro-batch.
  void rewind() { next_ = 0; }

  std::int64_t tokens() const { return tokens_; }        // targets over all processes: as asked, or fewer:
  std::int64_t available() const { return available_; }  // targets that the files hold
  // What to tell a person who asked for more targets than the files hold by the setting of this name; empty: not so.
  std::string shortened_note(const std::string& setting) const;
  std::int64_t micro_batches() const { return micro_batches_; }  // of each process

 private:
  ValidationOptions options_;
  SequenceFormat format_;
  std::vector<Shard> shards_;
  std::vector<std::int64_t> sequence_ends_;  // [shard] sequences in this shard and those before it
  std::vector<std::int64_t> target_ends_;    // [shard] targets in this shard and those before it
  std::int64_t available_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t micro_batches_ = 0;
  std::int64_t next_ = 0;
};

}  // namespace polaron

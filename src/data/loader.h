// From shards to training batches.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "data/batch.h"
#include "data/order.h"
#include "data/shard.h"

namespace polaron {

struct LoaderOptions {
  std::string pattern;                // glob of shard files
  std::int64_t sequence_length = 0;   // T
  std::int64_t global_batch = 0;      // sequences of one optimizer step, over all processes and micro-batches
  std::int64_t micro_batch = 0;       // sequences of one next()
  int rank = 0;                       // this process, 0 <= rank < processes
  int processes = 1;                  //
  bool shuffle = true;                //
  std::uint64_t seed = 0;             // of the shuffling
  std::int64_t vocabulary_size = 0;   // the model's; ids at or over it are errors
  bool document_mask = false;         // fill Batch::document_start
  std::int32_t separator_token = -1;  // opens each document; -1: none known
};

// All that a checkpoint needs to store: the order of the data is a function of the options and of this number.
struct LoaderPosition {
  std::int64_t global_batches = 0;  // handed out whole
};

// Cuts each shard into windows of T inputs and T targets (window i starts at token i*T; a tail of fewer than T + 1
// tokens is left out) and hands them out for ever, epoch after epoch, in the order of WindowOrder. Global batch g is
// sequences [g*global_batch, (g+1)*global_batch) of that order, for any number of processes; process `rank` gets the
// rank-th of `processes` contiguous slices of it, in micro-batches. A batch may straddle two epochs.
//
// A thread of the Loader reads ahead by a few micro-batches. next() and position() belong to one thread at a time.
class Loader {
 public:
  // Opens and checks every shard. Throws Error(Exit::usage) where the figures do not fit each other, Error(Exit::data)
  // where the files are not in order or hold fewer sequences than one global batch.
  explicit Loader(LoaderOptions options, LoaderPosition position = {});
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next micro-batch of this process; the caller owns it. Throws Error(Exit::data) where a token id does not fit
  // the vocabulary, after all batches before it were handed out, and again on every later call.
  Batch next();

  // How many global batches next() has handed out whole; a Loader started there goes on with the one after them.
  LoaderPosition position() const;

  std::int64_t micro_batches_per_global_batch() const;  // next() calls of this process for one global batch
  std::int64_t sequences_per_epoch() const { return order_.windows(); }
  std::int64_t tokens_per_epoch() const { return order_.windows() * options_.sequence_length; }  // targets
  // The epoch, counted from 0, of the first sequence of the next global batch to be completed, over all processes.
  std::int64_t epoch() const;

  const std::vector<Shard>& shards() const { return shards_; }
  const LoaderOptions& options() const { return options_; }

  // A number that changes with anything that the order of tokens depends on (file names without their folders, token
  // counts, sequence length, global batch, shuffling, seed), not with processes or micro-batch. Stored in a checkpoint,
  // it tells whether a position still means the same data.
  std::uint64_t fingerprint() const;

 private:
  void prefetch(std::int64_t micro_batch);
  Batch read(std::int64_t micro_batch);

  LoaderOptions options_;
  SequenceFormat format_;
  std::vector<Shard> shards_;
  WindowOrder order_;            // used by the thread alone once it runs
  std::int64_t handed_out_ = 0;  // micro-batches of this process, from the very start of the data

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr failure_;  // why the thread ended; delivered after `ready_`
  bool stop_ = false;
  std::thread thread_;  // last: everything it uses exists before and after it
};

}  // namespace polaron

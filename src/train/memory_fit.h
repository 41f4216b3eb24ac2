// Whether a run fits into the device's memory, and which micro-batch does.
#pragma once

#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "comm/communicator.h"
#include "config/config.h"
#include "model/parameters.h"
#include "optim/assignment.h"
#include "optim/ownership.h"
#include "train/plan.h"

namespace polaron {

// Bytes of the device's memory that are free; 0 where the device cannot tell.
std::int64_t free_memory(Device& device);
// What of it "auto" micro-batches may fill: the rest is for what libraries take themselves.
constexpr std::int64_t filled_by_auto(std::int64_t free_bytes) { return free_bytes / 16 * 15; }

// The memory of one run, as far as its micro-batch and its activations may still change. Owns nothing. Made by all
// processes together before any of them allocates: what is free then is shared alike by those on one device.
class MemoryFit {
 public:
  MemoryFit(const Config& config, const ParameterTable& table, const Assignment& assignment, const Ownership& ownership,
            Communicator& communicator, Backend& backend);

  // The largest micro-batch that all processes can hold, for "auto"; 1 where none fits, as check() then says. A
  // collective call.
  std::int64_t choose_micro_batch() const;
  // Error(Exit::device), with what would fit, where `memory` is more than is free.
  void check(const MemoryPlan& memory) const;
  // "auto" became `micro_batch`: a sentence for the run's summary.
  std::string note(std::int64_t micro_batch) const;

 private:
  std::int64_t largest(Recompute recompute, std::int64_t bytes) const;  // micro-batch in so many bytes; 0: none
  std::string what_would_fit(std::int64_t bytes) const;

  const Config& config_;
  const ParameterTable& table_;
  const Assignment& assignment_;
  const Ownership& ownership_;
  Communicator& communicator_;
  Backend& backend_;
  std::int64_t free_;  // bytes, of the device
  int sharing_;        // processes on it
};

}  // namespace polaron

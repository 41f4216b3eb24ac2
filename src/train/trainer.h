// The training loop.
#pragma once

#include <filesystem>
#include <optional>

#include "base/error.h"
#include "comm/communicator.h"
#include "config/config.h"

namespace polaron {

struct TrainOptions {
  std::optional<std::filesystem::path> resume;  // a checkpoint or a run directory; nothing: a new run
  // For jobs that are started again by themselves: the run's own newest checkpoint comes before `resume`; a run that
  // was stopped before its first one begins anew.
  bool auto_resume = false;
  double max_seconds = 0;  // stop as a signal would after this much time; 0: never
};

// Collective where the communicator has several processes; then an Error of the training loop ends them all
// (Communicator::fail), and only process 0 writes to the run directory and the console.
//
// Trains to the end of the config's steps: Exit::done; or until SIGINT, SIGTERM or max_seconds: a checkpoint of the
// last complete step is written and Exit::interrupted returned. Everything else is an Error; the run directory then
// holds what was complete.
Exit train(const Config& config, const TrainOptions& options, Communicator& communicator);

}  // namespace polaron

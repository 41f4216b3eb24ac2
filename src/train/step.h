// One optimizer step, queued on the device without waiting for it, and its outcome when it is there.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "train/session.h"

namespace polaron {

struct StepOutcome {
  std::int64_t step = 0;     // 0 for the first
  double loss = 0;           // mean over the global batch's targets
  double gradient_norm = 0;  // before clipping
  bool applied = true;       // false: not finite, or a loss spike: nothing was changed
  double lr_factor = 0;
};

// Runs steps of a session. On a device that works by itself the host is one step ahead of what it knows.
class StepRunner {
 public:
  explicit StepRunner(Session& session);

  // Queues all micro-batches of a step and its update. False where `interrupted` (asked between micro-batches; never
  // true for one of several processes alone) cut it short: then parameters and state are as before. loss_limit: skip
  // the update where the loss is above it (infinity: never).
  template <class Interrupted>
  bool queue(Loader& loader, std::int64_t step, double loss_limit, Interrupted interrupted) {
    begin(step);
    const std::int64_t micro_batches = loader.micro_batches_per_global_batch();
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      if (interrupted()) return false;
      micro_batch(loader.next(), i > 0, i + 1 == micro_batches);
    }
    finish(step, loss_limit);
    return true;
  }

  // Outcome of the oldest queued step: nothing where none is queued, or where the device has not finished it and the
  // host need not wait yet (at most one step may be outstanding). `wait`: waits for it.
  std::optional<StepOutcome> outcome(bool wait);

 private:
  // In device memory; read back as a whole after the update.
  struct Result {
    double loss_sum;
    double sum_of_squares;
    float norm;
    float clip;
    std::int32_t apply;
  };
  struct Pending {
    StepOutcome outcome;
    std::unique_ptr<Result> host;
    std::unique_ptr<Event> done;
  };

  void begin(std::int64_t step);
  void micro_batch(Batch batch, bool accumulate, bool last);
  void finish(std::int64_t step, double loss_limit);

  Session& session_;
  std::vector<std::vector<Segment>> reductions_;     // [layer + 1]: gradients that travel when a layer's are complete
  std::vector<std::span<const float>> norm_ranges_;  // gradients whose squares this process adds up
  DeviceBuffer result_;
  double targets_;  // of a global batch
  std::deque<Pending> pending_;
};

}  // namespace polaron

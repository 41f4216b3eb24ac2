// One optimizer step, queued on the device without waiting for it, and its outcome when it is there.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <utility>
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
  ~StepRunner();  // waits for the stream: it may still bring outcomes into this object's memory
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  // Queues all micro-batches of a step and its update. False where `interrupted` (asked between micro-batches; never
  // true for one of several processes alone) cut it short: then parameters and state are as before. loss_limit: skip
  // the update where the loss is above it (infinity: never).
  template <class Interrupted>
  bool queue(Loader& loader, std::int64_t step, double loss_limit, Interrupted interrupted) {
    begin(step);
    const bool both = adds_previous(step);
    for (std::size_t i = 0; both && i < previous_.size(); ++i) {
      if (interrupted()) return false;
      micro_batch(previous_[i], i > 0, false, false);
    }
    if (keeps_previous()) previous_.clear();
    const std::int64_t micro_batches = loader.micro_batches_per_global_batch();
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      if (interrupted()) return false;
      Batch batch = loader.next();
      if (keeps_previous()) previous_.push_back(batch);
      micro_batch(std::move(batch), both || i > 0, i + 1 == micro_batches, true);
    }
    finish(step, loss_limit);
    return true;
  }

  // Runs every op of a step once, with nothing changed but the gradients, so that the backend makes its choices.
  // Collective.
  void rehearse(Loader& loader);

  // For runs with quirks.previous_batch_gradient that go on: takes a global batch as the one before the next step's.
  bool keeps_previous() const { return session_.config.quirks.previous_batch_gradient; }
  void remember(Loader& loader);

  // Outcome of the oldest queued step: nothing where none is queued, or where the device has not finished it and the
  // host need not wait yet. `wait`: waits for it. At most one step may be outstanding; none where
  // training.skip_loss_spikes asks for limits, each of which follows from all losses before: then the host waits for
  // every step, and the result depends neither on timing nor on the number of processes.
  std::optional<StepOutcome> outcome(bool wait);

 private:
  // In device memory; read back as a whole after the update.
  struct Result {
    double loss_sum;
    double sum_of_squares;
    float norm;
    float clip;
    std::int32_t apply;
    double previous_loss_sum;  // of the batch before, which is not told
  };
  struct Pending {
    StepOutcome outcome;
    const Result* host;
    std::unique_ptr<Event> done;
  };

  void begin(std::int64_t step);
  bool adds_previous(std::int64_t step) const;
  void micro_batch(Batch batch, bool accumulate, bool last, bool counted);
  void finish(std::int64_t step, double loss_limit);

  Session& session_;
  std::vector<std::vector<Segment>> reductions_;     // [layer + 1]: gradients that travel when a layer's are complete
  std::vector<std::span<const float>> norm_ranges_;  // gradients whose squares this process adds up
  DeviceBuffer result_;
  Result* host_results_;  // in the device's host memory: of steps with even and with odd numbers
  double targets_;        // of a global batch
  std::deque<Pending> pending_;
  std::vector<Batch> previous_;  // micro-batches of the step before, where they are wanted
};

}  // namespace polaron

// The class behind train() of trainer.h: one start of a run. trainer.cpp has what happens when, trainer_events.cpp what
// is told and left of it. Internal to train/.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint.h"
#include "train/console.h"
#include "train/evaluate.h"
#include "train/metrics.h"
#include "train/session.h"
#include "train/signals.h"
#include "train/spectra.h"
#include "train/spikes.h"
#include "train/step.h"
#include "train/trainer.h"

namespace polaron {

class Trainer {
 public:
  Trainer(const Config& config, const TrainOptions& options, Communicator& communicator);

  Exit run();

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Exit loop();
  Exit stop();
  void resume();
  void tell_changes() const;
  void open_run();
  void recall_validation();
  void describe();
  bool stopping() const;
  bool agree_to_stop();
  void report_traffic();
  void collect(bool wait);
  void report(const StepOutcome& outcome);
  void after_step();
  void compare_weights();
  bool validate();  // false: interrupted, and nothing is told of it
  void sample();
  void measure_spectra();
  void checkpoint();
  Exit end(const std::string& reason, Exit code);
  [[noreturn]] void stop_not_finite(const std::string& what, const std::string& details);
  std::string newest_checkpoint() const;
  bool due(std::int64_t every) const { return every > 0 && done_ % every == 0; }
  std::int64_t tokens_per_step() const {
    return session_.config.training.batch * session_.config.training.sequence_length;
  }

  // Trained on by the end of a step of this start; steps before it may have had other batches.
  std::int64_t tokens_at(std::int64_t step) const { return first_tokens_ + (step - first_step_) * tokens_per_step(); }

  template <class Record>
  void log(const Record& record) {
    if (metrics_) metrics_->write(record);
  }

  Clock::time_point start_;
  TrainOptions options_;
  Communicator& communicator_;                  // for the host; session_.communicator knows the device as well
  bool root_;                                   // this process writes to the run directory and the console
  File lock_;                                   // on the run directory, where it exists
  std::optional<CheckpointReader> checkpoint_;  // to resume from; gone once the run is open
  Session session_;
  std::filesystem::path run_;
  std::vector<std::filesystem::path> left_behind_;  // checkpoints of steps that this start makes anew
  SignalGuard signals_;
  StepRunner steps_;
  SpikeDetector spikes_;
  std::unique_ptr<Loader> loader_;
  Console console_;
  std::unique_ptr<MetricsLog> metrics_, spectra_log_;
  std::optional<Spectra> spectra_;
  std::vector<std::int32_t> sample_prompt_;  // token ids
  double gemm_rate_ = 0;

  std::int64_t first_step_ = 0, first_tokens_ = 0;  // where this start began
  std::int64_t done_ = 0;                           // updates queued
  std::int64_t saved_ = -1;                         // step of the newest checkpoint
  std::int64_t evaluated_ = -1;                     // step of the last validation
  std::optional<Evaluation> last_evaluation_;
  bool checkpoint_wanted_ = false;            // by a signal
  std::int64_t moved_ = 0, steps_run_ = 0;    // bytes in steps, by this process
  std::optional<std::int64_t> moved_a_step_;  // bytes, by all processes
  bool ended_ = false;                        // the log has its last line
  Clock::time_point last_report_;
};

}  // namespace polaron

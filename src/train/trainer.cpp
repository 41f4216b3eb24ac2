#include "train/trainer.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "base/log.h"
#include "io/atomic.h"
#include "train/choices.h"
#include "train/config_changes.h"
#include "train/huggingface.h"
#include "train/processes.h"
#include "train/run_directory.h"
#include "train/trainer_class.h"

namespace polaron {

namespace fs = std::filesystem;

namespace {

// A launcher may give its processes a terminal of their own whose text ends in a file: plain lines then.
Console::Options console_options(const Communicator& communicator) {
  Console::Options options;
  options.quiet = communicator.rank() != 0;
  if (communicator.size() > 1) options.terminal = Terminal{};
  return options;
}

// As checkpoint_to_resume, and the same on all processes.
std::optional<CheckpointReader> agreed_checkpoint(const fs::path& run, const TrainOptions& options,
                                                  Communicator& communicator) {
  std::optional<CheckpointReader> checkpoint = checkpoint_to_resume(run, options.resume, options.auto_resume);
  check_same_checkpoint(checkpoint ? &*checkpoint : nullptr, options.resume ? "--resume" : "--auto-resume",
                        communicator);
  return checkpoint;
}

// The config that the checkpoint's run had; nothing where this version does not read it.
std::optional<Config> config_of(const CheckpointReader& checkpoint) {
  try {
    return parse_config(checkpoint.state().config, checkpoint.folder().string());
  } catch (const Error&) {
    return std::nullopt;
  }
}

// A run that goes on with "auto" goes on with the micro-batch it had, so that it has the same bits, unless the batch or
// the processes are others now.
Config with_micro_batch_of(const std::optional<CheckpointReader>& checkpoint, Config config,
                           const Communicator& communicator) {
  if (!checkpoint || config.training.micro_batch != kAutoMicroBatch) return config;
  const std::optional<Config> former = config_of(*checkpoint);
  if (!former) return config;
  const TrainingConfig& before = former->training;
  const bool same = before.batch == config.training.batch && before.sequence_length == config.training.sequence_length;
  if (same && before.micro_batch > 0 && config.training.batch / communicator.size() % before.micro_batch == 0) {
    config.training.micro_batch = before.micro_batch;
  }
  return config;
}

}  // namespace

Trainer::Trainer(const Config& config, const TrainOptions& options, Communicator& communicator)
    : start_(Clock::now()),
      options_(options),
      communicator_(communicator),
      root_(communicator.rank() == 0),
      lock_(root_ ? lock_run_directory(config.output) : File(-1, config.output)),
      checkpoint_(agreed_checkpoint(config.output, options, communicator)),
      session_(with_micro_batch_of(checkpoint_, config, communicator), !checkpoint_, communicator),
      run_(session_.config.output),
      steps_(session_),
      spikes_(session_.config.training.skip_loss_spikes,
              checkpoint_ ? checkpoint_->state().loss_history : std::vector<double>{}),
      console_(console_options(communicator)) {
  if (checkpoint_) resume();
  settle_choices(session_, steps_, checkpoint_ ? checkpoint_->state().tuned : std::vector<std::byte>{});
  if (steps_.keeps_previous() && done_ > 0) steps_.remember(*session_.open_loader(done_ - 1));
  loader_ = session_.open_loader(done_);
  check_same_data(loader_->fingerprint(), session_.validation ? &*session_.validation : nullptr, communicator);
  if (checkpoint_ && loader_->fingerprint() != checkpoint_->state().data_fingerprint) {
    log::warn(
        "the data, the batch, the sequence length or the seed differ from the checkpoint's: the tokens that follow "
        "are not those that would have followed there.");
  }
  if (session_.config.sample.every > 0) sample_prompt_ = session_.sample_prompt();
  if (session_.config.diagnostics.spectra.every > 0) spectra_.emplace(session_);
  // Once nothing can be refused any more; killed from here on it goes on from there.
  if (checkpoint_ && root_) point_latest_at(run_, checkpoint_->folder());
  if (root_) open_run();
  if (checkpoint_ && session_.validation) recall_validation();
  checkpoint_.reset();
}

void Trainer::resume() {
  const TrainerState& state = checkpoint_->state();
  std::string differences;
  for (const ArchitectureDifference& each : architecture_differences(checkpoint_->model(), session_.config.model)) {
    differences += (differences.empty() ? "" : ", ") + each.text;
  }
  if (!differences.empty()) {
    throw Error(Exit::data, fmt::format("{} holds a model of another architecture than the config's: {}.",
                                        checkpoint_->folder().string(), differences));
  }
  checkpoint_->load_weights(session_.backend, *session_.stream, session_.weights_view());
  checkpoint_->load_optimizer(session_.backend, *session_.stream, session_.optimizer->state());
  session_.optimizer->restart_sums(*session_.stream);
  session_.round_weights();
  done_ = first_step_ = state.step;
  first_tokens_ = state.tokens;
  std::error_code ignored;  // of a folder that is not there
  if (fs::equivalent(checkpoint_->folder(), checkpoint_folder(run_, done_), ignored)) saved_ = done_;
  if (done_ > session_.config.training.steps) {
    throw Error(Exit::usage, fmt::format("{} is at step {}, beyond the config's {} steps; raise training.steps.",
                                         checkpoint_->folder().string(), done_, session_.config.training.steps));
  }
  tell_changes();
}

// In words, which of the settings that the run had are others now.
void Trainer::tell_changes() const {
  const std::optional<Config> before = config_of(*checkpoint_);
  if (!before) {
    log::warn(
        "--resume: this version of polaron does not read the checkpoint's config: whether it differs is not known");
    return;
  }
  for (const std::string& change : config_changes(to_json(*before), to_json(session_.config))) {
    log::warn("--resume: " + change);
  }
}

void Trainer::open_run() {
  std::error_code failure;
  fs::create_directories(run_, failure);
  if (failure) {
    throw Error(Exit::data, fmt::format("cannot create the run directory {}: {}. Choose another by --set output=DIR.",
                                        run_.string(), failure.message()));
  }
  if (lock_.descriptor() < 0) lock_ = lock_run_directory(run_);
  if (checkpoint_) {
    left_behind_ = later_checkpoints(run_, done_);
  } else if (options_.auto_resume) {
    set_logs_aside(run_);
  }
  const std::optional<std::int64_t> from = checkpoint_ ? std::optional(done_) : std::nullopt;
  metrics_ = std::make_unique<MetricsLog>(run_ / "metrics.jsonl", from);
  if (session_.config.diagnostics.spectra.every > 0) {
    spectra_log_ = std::make_unique<MetricsLog>(run_ / "spectra.jsonl", from);
  }
  write_file_atomically(run_ / "config.json", to_json(session_.config));
}

// A validation of this step that the log has is not done again, unless it was of other data or made another way.
void Trainer::recall_validation() {
  const std::optional<Config> before = config_of(*checkpoint_);
  const Config& now = session_.config;
  if (!before || before->data.validation != now.data.validation || before->precision != now.precision ||
      model_to_json(before->model) != model_to_json(now.model) ||
      before->training.sequence_length != now.training.sequence_length) {
    return;
  }
  Evaluation known;
  if (root_) {
    const std::optional<ValidationRecord> record = find_validation(run_ / "metrics.jsonl", done_);
    if (record) known = {record->val_loss, record->perplexity, record->val_tokens, record->ms / 1e3};
  }
  communicator_.broadcast_host(&known, sizeof known, 0);
  if (known.tokens != session_.validation->tokens()) return;
  last_evaluation_ = known;
  evaluated_ = done_;
}

bool Trainer::stopping() const {
  return signals_.stop_requested() || (options_.max_seconds > 0 && seconds_since(start_) >= options_.max_seconds);
}

// Signals reach processes at different times, and a checkpoint may be asked of one: all act on the same step.
bool Trainer::agree_to_stop() {
  double wishes[] = {stopping() ? 1.0 : 0.0, signals_.take_checkpoint_request() ? 1.0 : 0.0};
  communicator_.sum_host(wishes);
  checkpoint_wanted_ = checkpoint_wanted_ || wishes[1] > 0;
  return wishes[0] > 0;
}

// What went through the processes in this start's steps, beside what was planned.
void Trainer::report_traffic() {
  if (communicator_.size() == 1 || steps_run_ == 0) return;
  auto moved = static_cast<double>(moved_);
  communicator_.sum_host(std::span(&moved, 1));
  moved_a_step_ = std::llround(moved / static_cast<double>(steps_run_));
  console_.line(fmt::format("moved through each of {} processes a step: {} ({} bytes in all processes; planned {})",
                            communicator_.size(), format_bytes(*moved_a_step_ / communicator_.size()), *moved_a_step_,
                            session_.traffic.total()));
}

Exit Trainer::run() {
  try {
    return loop();
  } catch (const Error& problem) {
    try {
      if (!ended_) end(problem.what(), problem.code());
    } catch (const Error&) {  // the log may be what failed
    }
    // Here, where the memory that may be under way still exists.
    if (communicator_.size() > 1) communicator_.fail(problem.what(), problem.code());
    throw;
  }
}

Exit Trainer::loop() {
  describe();
  const Config& config = session_.config;
  console_.begin(done_, config.training.steps);
  // Of a run that goes on: where the signal that stopped it cut the validation short.
  const bool unknown = session_.validation && evaluated_ != done_;
  if (unknown && (done_ == 0 || due(session_.config.validation.every)) && !validate()) return stop();
  last_report_ = Clock::now();
  const bool alone = communicator_.size() == 1;
  while (done_ < config.training.steps) {
    bool queued = false;
    const std::int64_t moved_before = session_.communicator.bytes_moved();
    try {
      queued = !agree_to_stop() && steps_.queue(*loader_, done_, spikes_.limit(), [&] { return alone && stopping(); });
    } catch (const Error&) {  // of the data: what was learned so far is kept, unless others are in the middle of a step
      if (!alone) throw;
      collect(true);
      if (saved_ != done_ && done_ > 0) checkpoint();
      throw;
    }
    if (!queued) return stop();
    moved_ += session_.communicator.bytes_moved() - moved_before;
    ++steps_run_;
    ++done_;
    collect(false);
    after_step();
  }
  collect(true);
  if (session_.validation && evaluated_ != done_ && !validate()) return stop();
  if (saved_ != done_) checkpoint();
  report_traffic();
  return end("done", Exit::done);
}

// At the last complete step, as a signal, the time or another process asked.
Exit Trainer::stop() {
  collect(true);
  if (saved_ != done_) checkpoint();
  const bool timed_out = options_.max_seconds > 0 && seconds_since(start_) >= options_.max_seconds;
  report_traffic();
  const std::string reason = signals_.stop_requested() ? signal_name(signals_.stop_signal())
                             : timed_out               ? "max-time"
                                                       : "another process was asked to stop";
  return end(reason, Exit::interrupted);
}

// Takes the outcomes that are there; all of them when `wait`.
void Trainer::collect(bool wait) {
  while (const std::optional<StepOutcome> outcome = steps_.outcome(wait)) report(*outcome);
}

// What is due after the step that has just been queued. Everything that follows first learns how the step went.
void Trainer::after_step() {
  const Config& config = session_.config;
  const bool last = done_ == config.training.steps;
  const bool evaluation = session_.validation && due(config.validation.every);
  const bool sampling = due(config.sample.every);
  const bool spectra = due(config.diagnostics.spectra.every);
  const bool asked = std::exchange(checkpoint_wanted_, false);
  const bool saving = asked || (due(config.checkpoint.every) && !last);
  if (communicator_.size() > 1 && due(config.parallel.check_every)) compare_weights();
  if (!evaluation && !sampling && !saving && !spectra) return;
  collect(true);
  if (spectra) measure_spectra();
  if (evaluation && !validate()) return;  // the loop stops next
  if (sampling && root_) sample();
  if (saving) checkpoint();
  last_report_ = Clock::now();
}

// All processes must have made the same of what they exchanged.
void Trainer::compare_weights() {
  Device& device = session_.backend.device();
  Stream& stream = *session_.stream;
  const auto of = [&](const void* data, std::int64_t bytes) {
    return checksum_on_device(device, stream, data, static_cast<std::size_t>(bytes));
  };
  std::uint64_t checksum = 0;
  if (session_.working.data() == nullptr) {
    checksum = of(session_.weights.data(), static_cast<std::int64_t>(session_.weights.bytes()));
  } else {  // what the model computes with: of the masters of what is rounded only owners have the newest
    checksum = of(session_.working.data(), static_cast<std::int64_t>(session_.working.bytes()));
    for (const Parameter& p : session_.table.all()) {
      if (is_rounded(p.role)) continue;
      const Tensor master = view_of(p, session_.weights.as<float>());
      checksum = checksum * 31 + of(master.data, master.rows * master.cols * std::int64_t{sizeof(float)});
    }
  }
  check_same_weights(checksum, done_, communicator_);
}

Exit train(const Config& config, const TrainOptions& options, Communicator& communicator) {
  return Trainer(config, options, communicator).run();
}

}  // namespace polaron

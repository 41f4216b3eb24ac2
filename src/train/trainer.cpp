#include "train/trainer.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "base/log.h"
#include "config/enum_names.h"
#include "io/atomic.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/huggingface.h"
#include "train/metrics.h"
#include "train/processes.h"
#include "train/report.h"
#include "train/run_directory.h"
#include "train/session.h"
#include "train/signals.h"
#include "train/spikes.h"
#include "train/step.h"

namespace polaron {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr const char* kMfuConvention = "6N+6LCT";

// The sign of a NaN means nothing, but it is printed.
double without_sign_of_nan(double value) {
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

// A launcher may give its processes a terminal of their own whose text ends in a file: plain lines then.
Console::Options console_options(const Communicator& communicator) {
  Console::Options options;
  options.quiet = communicator.rank() != 0;
  if (communicator.size() > 1) options.terminal = Terminal{};
  return options;
}

class Trainer {
 public:
  Trainer(const Config& config, const TrainOptions& options, Communicator& communicator)
      : start_(Clock::now()),
        options_(options),
        communicator_(communicator),
        root_(communicator.rank() == 0),
        lock_(root_ ? lock_run_directory(config.output) : File(-1, config.output)),
        checkpoint_(checkpoint_to_resume(config.output, options.resume)),
        session_(config, !checkpoint_, communicator),
        run_(session_.config.output),
        steps_(session_),
        spikes_(session_.config.training.skip_loss_spikes,
                checkpoint_ ? checkpoint_->state().loss_history : std::vector<double>{}),
        console_(console_options(communicator)) {
    if (checkpoint_) resume();
    loader_ = session_.open_loader(done_);
    if (checkpoint_ && loader_->fingerprint() != checkpoint_->state().data_fingerprint) {
      log::warn(
          "the data, the batch, the sequence length or the seed differ from the checkpoint's: the tokens that follow "
          "are not those that would have followed there.");
    }
    checkpoint_.reset();
    if (session_.config.sample.every > 0) sample_prompt_ = session_.sample_prompt();
    if (root_) open_run();
  }

  Exit run();

 private:
  Exit loop();
  void resume();
  void open_run();
  void describe();
  bool stopping() const;
  bool agree_to_stop();
  void report_traffic();
  void collect(bool wait);
  void report(const StepOutcome& outcome);
  void after_step();
  void compare_weights();
  void validate();
  void sample();
  void checkpoint();
  Exit end(const std::string& reason, Exit code);
  [[noreturn]] void stop_not_finite(const std::string& what, const std::string& details);
  std::string newest_checkpoint() const;
  std::int64_t tokens_per_step() const {
    return session_.config.training.batch * session_.config.training.sequence_length;
  }

  template <class Record>
  void log(const Record& record) {
    if (metrics_) metrics_->write(record);
  }

  Clock::time_point start_;
  TrainOptions options_;
  Communicator& communicator_;
  bool root_;                                   // this process writes
  File lock_;                                   // on the run directory, where it exists
  std::optional<CheckpointReader> checkpoint_;  // to resume from; gone once it is read
  Session session_;
  fs::path run_;
  SignalGuard signals_;
  StepRunner steps_;
  SpikeDetector spikes_;
  std::unique_ptr<Loader> loader_;
  Console console_;
  std::unique_ptr<MetricsLog> metrics_;
  std::vector<std::int32_t> sample_prompt_;  // token ids
  double gemm_rate_ = 0;

  std::int64_t done_ = 0;        // updates queued
  std::int64_t saved_ = -1;      // step of the newest checkpoint
  std::int64_t evaluated_ = -1;  // step of the last validation
  std::optional<Evaluation> last_evaluation_;
  bool checkpoint_wanted_ = false;            // by a signal
  std::int64_t moved_ = 0, steps_run_ = 0;    // bytes in steps, by this process
  std::optional<std::int64_t> moved_a_step_;  // bytes, by all processes
  bool ended_ = false;                        // the log has its last line
  Clock::time_point last_report_;
};

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
  done_ = state.step;
  saved_ = state.step;
  if (done_ > session_.config.training.steps) {
    throw Error(Exit::usage, fmt::format("{} is at step {}, beyond the config's {} steps; raise training.steps.",
                                         checkpoint_->folder().string(), done_, session_.config.training.steps));
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
  metrics_ = std::make_unique<MetricsLog>(run_ / "metrics.jsonl",
                                          options_.resume ? std::optional<std::int64_t>(done_) : std::nullopt);
  write_file_atomically(run_ / "config.json", to_json(session_.config));
}

void Trainer::describe() {
  const Config& config = session_.config;
  console_.line(fmt::format("polaron {}   {}   {}", POLARON_VERSION, config.name, session_.chosen.why));
  console_.table(model_table(config, session_.table, session_.flops));
  console_.table(memory_table(session_.memory));
  console_.table(optimizer_table(session_.optimizer->assignment(), session_.table));
  const std::string note = full_rank_note(session_.optimizer->assignment());
  if (!note.empty()) console_.line(note);
  communicator_.barrier();  // all measure at the same time, as they will compute
  gemm_rate_ = measure_gemm_rate(session_.backend, session_.working.data() != nullptr ? DType::bf16 : DType::f32);
  double all_rates = gemm_rate_;
  communicator_.sum_host(std::span(&all_rates, 1));
  const DeviceInfo device = session_.backend.device().info();
  console_.line(fmt::format("peak rate: {} measured on a large GEMM, {} by the datasheet", format_flops(all_rates),
                            format_flops(device.datasheet_flops)));
  if (communicator_.size() > 1) {
    console_.line(fmt::format("{} processes, exchange of {}: {} through each a step", communicator_.size(),
                              name_of(config.parallel.exchange),
                              format_bytes(session_.traffic.total() / communicator_.size())));
  }
  if (done_ > 0) console_.line(fmt::format("resumed at step {}", format_grouped(done_)));

  RunRecord record;
  record.name = config.name;
  record.version = POLARON_VERSION;
  record.device = device.name;
  record.threads = device.threads;
  record.processes = communicator_.size();
  record.precision = config.precision;
  record.model = name_of(config.model.preset);
  record.parameters = session_.table.elements();
  record.optimizer = name_of(config.optimizer.matrices.kind);
  record.seed = config.seed;
  record.step = done_;
  record.steps = config.training.steps;
  record.tokens_per_step = tokens_per_step();
  record.flops_per_token = session_.flops.total();
  if (all_rates > 0) record.gemm_flops = all_rates;
  if (device.datasheet_flops > 0) record.datasheet_flops = device.datasheet_flops;
  log(record);
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
  if (done_ == 0 && session_.validation) validate();
  last_report_ = Clock::now();
  const bool alone = communicator_.size() == 1;
  while (done_ < config.training.steps) {
    bool queued = false;
    const std::int64_t moved_before = communicator_.bytes_moved();
    try {
      queued = !agree_to_stop() && steps_.queue(*loader_, done_, spikes_.limit(), [&] { return alone && stopping(); });
    } catch (const Error&) {  // of the data: what was learned so far is kept, unless others are in the middle of a step
      if (!alone) throw;
      collect(true);
      if (saved_ != done_ && done_ > 0) checkpoint();
      throw;
    }
    if (!queued) {
      collect(true);
      if (saved_ != done_) checkpoint();
      const bool timed_out = options_.max_seconds > 0 && seconds_since(start_) >= options_.max_seconds;
      report_traffic();
      const std::string reason = signals_.stop_requested() ? signal_name(signals_.stop_signal())
                                 : timed_out               ? "max-time"
                                                           : "another process was asked to stop";
      return end(reason, Exit::interrupted);
    }
    moved_ += communicator_.bytes_moved() - moved_before;
    ++steps_run_;
    ++done_;
    collect(false);
    after_step();
  }
  collect(true);
  if (session_.validation && evaluated_ != done_) validate();
  if (saved_ != done_) checkpoint();
  report_traffic();
  return end("done", Exit::done);
}

// Takes the outcomes that are there; all of them when `wait`.
void Trainer::collect(bool wait) {
  while (const std::optional<StepOutcome> outcome = steps_.outcome(wait)) report(*outcome);
}

void Trainer::report(const StepOutcome& outcome) {
  const Config& config = session_.config;
  const double seconds = seconds_since(last_report_);
  last_report_ = Clock::now();
  StepMetrics m;
  m.step = outcome.step + 1;
  m.tokens = m.step * tokens_per_step();
  m.loss = without_sign_of_nan(outcome.loss);
  m.lr = config.optimizer.matrices.lr * outcome.lr_factor;
  m.grad_norm = without_sign_of_nan(outcome.gradient_norm);
  m.clipped = config.training.gradient_clip > 0 && outcome.gradient_norm > config.training.gradient_clip;
  m.skipped = !outcome.applied;
  m.ms = seconds * 1e3;
  m.tokens_per_s = static_cast<double>(tokens_per_step()) / seconds;
  const double rate = session_.flops.total() * m.tokens_per_s / communicator_.size();
  if (gemm_rate_ > 0) m.mfu = rate / gemm_rate_;
  const double datasheet = session_.backend.device().info().datasheet_flops;
  if (datasheet > 0) m.mfu_datasheet = rate / datasheet;
  m.mfu_convention = kMfuConvention;
  m.memory = resident_bytes();
  log(m);
  console_.step(m);
  if (!std::isfinite(m.loss) || !std::isfinite(m.grad_norm)) {
    stop_not_finite(
        fmt::format("the {} is not finite at step {}", std::isfinite(m.loss) ? "gradient norm" : "loss", m.step),
        fmt::format(" (loss {}, gradient norm {}), whose update was not made", m.loss, m.grad_norm));
  }
  if (outcome.applied) {
    spikes_.add(outcome.loss);
  } else {
    console_.warn(fmt::format("step {}: loss {:.4f} is a spike; its update was skipped (training.skip_loss_spikes).",
                              m.step, outcome.loss));
  }
}

void Trainer::stop_not_finite(const std::string& what, const std::string& details) {
  end(what, Exit::numerical);
  throw Error(Exit::numerical, fmt::format("{}{}. {} Lower the learning rate, lengthen schedule.warmup_steps or lower "
                                           "training.gradient_clip.",
                                           what, details, newest_checkpoint()));
}

std::string Trainer::newest_checkpoint() const {
  return saved_ >= 0 ? fmt::format("The newest checkpoint is {}.", checkpoint_folder(run_, saved_).string())
                     : "There is no checkpoint yet.";
}

// What is due after the step that has just been queued. Everything that follows first learns how the step went.
void Trainer::after_step() {
  const Config& config = session_.config;
  const auto due = [&](std::int64_t every) { return every > 0 && done_ % every == 0; };
  const bool last = done_ == config.training.steps;
  const bool evaluation = session_.validation && due(config.validation.every);
  const bool sampling = due(config.sample.every);
  const bool saving = (due(config.checkpoint.every) && !last) || std::exchange(checkpoint_wanted_, false);
  if (communicator_.size() > 1 && due(config.parallel.check_every)) compare_weights();
  if (!evaluation && !sampling && !saving) return;
  collect(true);
  if (evaluation) validate();
  if (sampling && root_) sample();
  if (saving) checkpoint();
  last_report_ = Clock::now();
}

// All processes must have made the same of what they exchanged.
void Trainer::compare_weights() {
  // What the model computes with: of the masters in bf16 training only owners have the newest.
  const DeviceBuffer& used = session_.working.data() != nullptr ? session_.working : session_.weights;
  std::vector<std::byte> weights(used.bytes());
  session_.backend.device().download(*session_.stream, weights.data(), used.data(), weights.size());
  session_.stream->synchronize();
  check_same_weights(weights, done_, communicator_);
}

void Trainer::validate() {
  console_.phase("validation");
  const Evaluation result = evaluate(*session_.model, session_.backend, *session_.stream, communicator_,
                                     *session_.uploader, *session_.validation);
  evaluated_ = done_;
  last_evaluation_ = result;
  ValidationRecord record;
  record.step = done_;
  record.tokens = done_ * tokens_per_step();
  record.val_loss = result.loss;
  record.perplexity = result.perplexity;
  record.val_tokens = result.tokens;
  record.ms = result.seconds * 1e3;
  log(record);
  console_.validation(record);
  if (!std::isfinite(result.loss))
    stop_not_finite(fmt::format("the validation loss is not finite at step {}", done_), "");
}

void Trainer::sample() {
  const SampleConfig& config = session_.config.sample;
  console_.phase("sample");
  SamplingOptions options;
  options.tokens = config.tokens;
  options.temperature = config.temperature;
  options.top_k = config.top_k;
  options.seed = session_.config.seed + static_cast<std::uint64_t>(done_);
  const std::vector<std::int32_t> ids = generate(*session_.model, *session_.stream, *session_.uploader,
                                                 session_.config.training.sequence_length, sample_prompt_, options);
  SampleRecord record;
  record.step = done_;
  record.tokens = done_ * tokens_per_step();
  record.prompt = config.prompt;
  record.text = session_.vocabulary->decode(ids);
  log(record);
  console_.sample(record);
}

void Trainer::checkpoint() {
  console_.phase("checkpoint");
  const Clock::time_point start = Clock::now();
  TrainerState state;
  state.step = done_;
  state.tokens = done_ * tokens_per_step();
  state.data_fingerprint = loader_->fingerprint();
  state.loss_history = spikes_.history();
  state.config = to_json(session_.config);
  if (metrics_) metrics_->sync();
  session_.optimizer->complete_state(*session_.stream);
  const fs::path folder = checkpoint_folder(run_, done_);
  try {
    write_checkpoint(folder, session_.backend, *session_.stream, communicator_, session_.weights_view(),
                     session_.optimizer->state(), state, session_.vocabulary ? session_.vocabulary->json() : "",
                     session_.separator());
    if (root_) finish_checkpoint(run_, done_, session_.config.checkpoint.keep);
  } catch (const Error& problem) {
    throw Error(problem.code(), fmt::format("{} Training stops at step {} without a checkpoint of it. {}",
                                            problem.what(), done_, newest_checkpoint()));
  }
  session_.optimizer->restart_sums(*session_.stream);
  saved_ = done_;
  if (!root_) return;
  CheckpointRecord record;
  record.step = done_;
  record.tokens = state.tokens;
  record.path = folder.string();
  for (const fs::directory_entry& file : fs::directory_iterator(folder)) {
    record.bytes += static_cast<std::int64_t>(file.file_size());
  }
  record.ms = seconds_since(start) * 1e3;
  log(record);
  console_.checkpoint(record);
}

Exit Trainer::end(const std::string& reason, Exit code) {
  EndRecord record;
  record.step = done_;
  record.tokens = done_ * tokens_per_step();
  record.reason = reason;
  record.exit_code = static_cast<int>(code);
  record.seconds = seconds_since(start_);
  record.moved_a_step = moved_a_step_;
  if (last_evaluation_) {
    record.val_loss = last_evaluation_->loss;
    record.perplexity = last_evaluation_->perplexity;
  }
  ended_ = true;
  log(record);
  console_.end();
  if (code == Exit::interrupted) {
    console_.line(fmt::format("stopped at step {} ({}); go on with --resume", format_grouped(done_), reason));
  }
  return code;
}

}  // namespace

Exit train(const Config& config, const TrainOptions& options, Communicator& communicator) {
  return Trainer(config, options, communicator).run();
}

}  // namespace polaron

#include "train/trainer.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "base/log.h"
#include "config/enum_names.h"
#include "io/atomic.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/huggingface.h"
#include "train/metrics.h"
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

class Trainer {
 public:
  Trainer(const Config& config, const TrainOptions& options)
      : start_(Clock::now()),
        options_(options),
        lock_(lock_run_directory(config.output)),
        checkpoint_(checkpoint_to_resume(config.output, options.resume)),
        session_(config, !checkpoint_),
        run_(session_.config.output),
        steps_(session_),
        spikes_(session_.config.training.skip_loss_spikes,
                checkpoint_ ? checkpoint_->state().loss_history : std::vector<double>{}) {
    if (checkpoint_) resume();
    loader_ = session_.open_loader(done_);
    if (checkpoint_ && loader_->fingerprint() != checkpoint_->state().data_fingerprint) {
      log::warn(
          "the data, the batch, the sequence length or the seed differ from the checkpoint's: the tokens that follow "
          "are not those that would have followed there.");
    }
    checkpoint_.reset();
    if (session_.config.sample.every > 0) sample_prompt_ = session_.sample_prompt();
    open_run();
  }

  Exit run();

 private:
  Exit loop();
  void resume();
  void open_run();
  void describe();
  bool stopping() const;
  void collect(bool wait);
  void report(const StepOutcome& outcome);
  void after_step();
  void validate();
  void sample();
  void checkpoint();
  Exit end(const std::string& reason, Exit code);
  [[noreturn]] void stop_not_finite(const std::string& what, const std::string& details);
  std::string newest_checkpoint() const;
  std::int64_t tokens_per_step() const {
    return session_.config.training.batch * session_.config.training.sequence_length;
  }

  Clock::time_point start_;
  TrainOptions options_;
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
  bool ended_ = false;  // the log has its last line
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
  gemm_rate_ = measure_gemm_rate(session_.backend);
  const DeviceInfo device = session_.backend.device().info();
  console_.line(fmt::format("peak rate: {} measured on a large GEMM, {} by the datasheet", format_flops(gemm_rate_),
                            format_flops(device.datasheet_flops)));
  if (done_ > 0) console_.line(fmt::format("resumed at step {}", format_grouped(done_)));

  RunRecord record;
  record.name = config.name;
  record.version = POLARON_VERSION;
  record.device = device.name;
  record.threads = device.threads;
  record.processes = session_.communicator->size();
  record.precision = config.precision;
  record.model = name_of(config.model.preset);
  record.parameters = session_.table.elements();
  record.optimizer = name_of(config.optimizer.matrices.kind);
  record.seed = config.seed;
  record.step = done_;
  record.steps = config.training.steps;
  record.tokens_per_step = tokens_per_step();
  record.flops_per_token = session_.flops.total();
  if (gemm_rate_ > 0) record.gemm_flops = gemm_rate_;
  if (device.datasheet_flops > 0) record.datasheet_flops = device.datasheet_flops;
  metrics_->write(record);
}

bool Trainer::stopping() const {
  return signals_.stop_requested() || (options_.max_seconds > 0 && seconds_since(start_) >= options_.max_seconds);
}

Exit Trainer::run() {
  try {
    return loop();
  } catch (const Error& problem) {
    try {
      if (!ended_) end(problem.what(), problem.code());
    } catch (const Error&) {  // the log may be what failed
    }
    throw;
  }
}

Exit Trainer::loop() {
  describe();
  const Config& config = session_.config;
  console_.begin(done_, config.training.steps);
  if (done_ == 0 && session_.validation) validate();
  last_report_ = Clock::now();
  while (done_ < config.training.steps) {
    bool queued = false;
    try {
      queued = !stopping() && steps_.queue(*loader_, done_, spikes_.limit(), [&] { return stopping(); });
    } catch (const Error&) {  // of the data: what was learned so far is kept
      collect(true);
      if (saved_ != done_ && done_ > 0) checkpoint();
      throw;
    }
    if (!queued) {
      collect(true);
      if (saved_ != done_) checkpoint();
      return end(signals_.stop_requested() ? signal_name(signals_.stop_signal()) : "max-time", Exit::interrupted);
    }
    ++done_;
    collect(false);
    after_step();
  }
  collect(true);
  if (session_.validation && evaluated_ != done_) validate();
  if (saved_ != done_) checkpoint();
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
  const double rate = session_.flops.total() * m.tokens_per_s / session_.communicator->size();
  if (gemm_rate_ > 0) m.mfu = rate / gemm_rate_;
  const double datasheet = session_.backend.device().info().datasheet_flops;
  if (datasheet > 0) m.mfu_datasheet = rate / datasheet;
  m.mfu_convention = kMfuConvention;
  m.memory = resident_bytes();
  metrics_->write(m);
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
  const bool saving = (due(config.checkpoint.every) && !last) || signals_.take_checkpoint_request();
  if (!evaluation && !sampling && !saving) return;
  collect(true);
  if (evaluation) validate();
  if (sampling) sample();
  if (saving) checkpoint();
  last_report_ = Clock::now();
}

void Trainer::validate() {
  console_.phase("validation");
  const Evaluation result = evaluate(*session_.model, session_.backend, *session_.stream, *session_.communicator,
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
  metrics_->write(record);
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
  metrics_->write(record);
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
  metrics_->sync();
  const fs::path folder = checkpoint_folder(run_, done_);
  try {
    write_checkpoint(folder, session_.backend, *session_.stream, session_.weights_view(), session_.optimizer->state(),
                     state, session_.vocabulary ? session_.vocabulary->json() : "", session_.separator());
    finish_checkpoint(run_, done_, session_.config.checkpoint.keep);
  } catch (const Error& problem) {
    throw Error(problem.code(), fmt::format("{} Training stops at step {} without a checkpoint of it. {}",
                                            problem.what(), done_, newest_checkpoint()));
  }
  saved_ = done_;
  CheckpointRecord record;
  record.step = done_;
  record.tokens = state.tokens;
  record.path = folder.string();
  for (const fs::directory_entry& file : fs::directory_iterator(folder)) {
    record.bytes += static_cast<std::int64_t>(file.file_size());
  }
  record.ms = seconds_since(start) * 1e3;
  metrics_->write(record);
  console_.checkpoint(record);
}

Exit Trainer::end(const std::string& reason, Exit code) {
  EndRecord record;
  record.step = done_;
  record.tokens = done_ * tokens_per_step();
  record.reason = reason;
  record.exit_code = static_cast<int>(code);
  record.seconds = seconds_since(start_);
  if (last_evaluation_) {
    record.val_loss = last_evaluation_->loss;
    record.perplexity = last_evaluation_->perplexity;
  }
  ended_ = true;
  metrics_->write(record);
  console_.end();
  if (code == Exit::interrupted) {
    console_.line(fmt::format("stopped at step {} ({}); go on with --resume", format_grouped(done_), reason));
  }
  return code;
}

}  // namespace

Exit train(const Config& config, const TrainOptions& options) { return Trainer(config, options).run(); }

}  // namespace polaron

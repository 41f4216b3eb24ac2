// What a run tells: the console, metrics.jsonl, and the checkpoints and samples that it leaves.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "config/enum_names.h"
#include "train/format.h"
#include "train/gemm_rate.h"
#include "train/generate.h"
#include "train/report.h"
#include "train/trainer_class.h"

namespace polaron {

namespace fs = std::filesystem;

namespace {

constexpr const char* kMfuConvention = "6N+6LCT";

// The sign of a NaN means nothing, but it is printed.
double without_sign_of_nan(double value) {
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

}  // namespace

void Trainer::describe() {
  const Config& config = session_.config;
  console_.line(fmt::format("polaron {}   {}   {}", POLARON_VERSION, config.name, session_.chosen.why));
  console_.table(model_table(config, session_.table, session_.flops));
  console_.table(memory_table(session_.memory));
  if (!session_.micro_batch_note.empty()) console_.line(session_.micro_batch_note);
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
  if (!left_behind_.empty()) {
    console_.line(fmt::format(
        "the checkpoints of later steps, up to {}, are kept until {}", left_behind_.back().filename().string(),
        config.checkpoint.keep > 0 ? "the next one is written; of those beyond checkpoint.keep they go first"
                                   : "new ones of their steps replace them"));
  }

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

void Trainer::report(const StepOutcome& outcome) {
  const Config& config = session_.config;
  const double seconds = seconds_since(last_report_);
  last_report_ = Clock::now();
  StepMetrics m;
  m.step = outcome.step + 1;
  m.tokens = tokens_at(m.step);
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
    done_ = outcome.step;  // this update was not made, and none that was queued after it counts
    stop_not_finite(
        fmt::format("the {} is not finite at step {}", std::isfinite(m.loss) ? "gradient norm" : "loss", m.step),
        fmt::format(" (loss {}, gradient norm {}), whose update was not made", m.loss, m.grad_norm));
  }
  spikes_.add(outcome.loss);
  if (!outcome.applied) {
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

void Trainer::measure_spectra() {
  console_.phase("spectra");
  for (std::string& line : spectra_->measure(done_)) spectra_log_->write_line(std::move(line));
}

bool Trainer::validate() {
  console_.phase("validation");
  session_.uploader->set_progress(static_cast<double>(done_) / static_cast<double>(session_.config.training.steps));
  const std::optional<Evaluation> complete =
      evaluate(*session_.model, session_.backend, *session_.stream, session_.communicator, *session_.uploader,
               *session_.validation, [this](std::int64_t done) {
                 console_.phase("validation", done, session_.validation->micro_batches());
                 return agree_to_stop();
               });
  if (!complete) return false;
  const Evaluation& result = *complete;
  evaluated_ = done_;
  last_evaluation_ = result;
  ValidationRecord record;
  record.step = done_;
  record.tokens = tokens_at(done_);
  record.val_loss = result.loss;
  record.perplexity = result.perplexity;
  record.val_tokens = result.tokens;
  record.ms = result.seconds * 1e3;
  log(record);
  console_.validation(record);
  if (!std::isfinite(result.loss))
    stop_not_finite(fmt::format("the validation loss is not finite at step {}", done_), "");
  return true;
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
  record.tokens = tokens_at(done_);
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
  state.tokens = tokens_at(done_);
  state.data_fingerprint = loader_->fingerprint();
  state.loss_history = spikes_.history();
  state.config = to_json(session_.config);
  if (root_) state.tuned = session_.backend.tuned();
  if (metrics_) metrics_->sync();
  if (spectra_log_) spectra_log_->sync();
  session_.optimizer->complete_state(*session_.stream);
  const fs::path folder = checkpoint_folder(run_, done_);
  try {
    write_checkpoint(folder, session_.backend, *session_.stream, session_.communicator, session_.weights_view(),
                     session_.optimizer->state(), state, session_.vocabulary ? session_.vocabulary->json() : "",
                     session_.separator());
    std::erase(left_behind_, folder);
    if (root_) finish_checkpoint(run_, done_, session_.config.checkpoint.keep, left_behind_);
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
  record.tokens = tokens_at(done_);
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

}  // namespace polaron

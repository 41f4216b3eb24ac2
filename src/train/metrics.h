// metrics.jsonl: what happened in a run, one JSON object a line, for scripts/plot_run.py and other programs. For the
// fields of each kind of line see the structs here and docs/formats.md.
//
// Numbers: doubles are printed so that they read back to the same value. JSON has no NaN and no infinity: such a number
// is null, and the key with "_nonfinite" appended says "nan", "inf" or "-inf". What is not known (std::nullopt) is null
// without that key. Text is UTF-8; bytes that are not become U+FFFD.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/file.h"

namespace polaron {

// "kind": "run". The first line, and one more for every resume. The log adds "time", the UTC time of writing.
struct RunRecord {
  std::string name;                       // of the config
  std::string version;                    // of the program
  std::string device;                     // in words, say the processor's name
  std::int64_t threads = 0;               // a process
  std::int64_t processes = 1;             //
  std::string precision;                  // "fp32"
  std::string model;                      // preset: "gpt2", "llama"
  std::int64_t parameters = 0;            // without padding; a tied table once
  std::string optimizer;                  // of the matrices: "low_rank_muon"
  std::uint64_t seed = 0;                 //
  std::int64_t step = 0;                  // updates done before this start: 0, or where it resumes
  std::int64_t steps = 0;                 // planned, from the beginning of the run
  std::int64_t tokens_per_step = 0;       // targets in a global batch
  double flops_per_token = 0;             // of forward and backward pass, by StepMetrics::mfu_convention
  std::optional<double> gemm_flops;       // FLOP/s: largest GEMM rate measured at the start, all processes together
  std::optional<double> datasheet_flops;  // FLOP/s that the maker states; nothing for an unknown device
};

// "kind": "step". One for every optimizer step, skipped ones included.
struct StepMetrics {
  std::int64_t step = 0;                // 1: the first update is done
  std::int64_t tokens = 0;              // targets seen since the beginning of the run
  double loss = 0;                      // mean negative log likelihood of the step's targets, nats
  double lr = 0;                        // of the group `matrices`
  double grad_norm = 0;                 // global, before clipping
  bool clipped = false;                 // the gradient was scaled down to the clipping norm
  bool skipped = false;                 // a loss spike: parameters and state were left as they were
  double ms = 0;                        // wall time of the step
  double tokens_per_s = 0;              //
  std::optional<double> mfu;            // fraction of RunRecord::gemm_flops
  std::optional<double> mfu_datasheet;  // fraction of RunRecord::datasheet_flops
  std::string mfu_convention;           // "6N+6LCT": FLOPs counted for a token
  std::int64_t memory = 0;              // resident anonymous bytes of this process
};

// "kind": "validation".
struct ValidationRecord {
  std::int64_t step = 0;        // updates done
  std::int64_t tokens = 0;      // as in StepMetrics
  double val_loss = 0;          // mean negative log likelihood of val_tokens targets, nats
  double perplexity = 0;        // exp(val_loss)
  std::int64_t val_tokens = 0;  //
  double ms = 0;                //
};

// "kind": "sample".
struct SampleRecord {
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  std::string prompt;  // as given
  std::string text;    // what the model wrote after it
};

// "kind": "checkpoint". Written once the checkpoint is published.
struct CheckpointRecord {
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  std::string path;
  std::int64_t bytes = 0;
  double ms = 0;
};

// "kind": "end". The last line of a process that ended by itself. The log adds "time".
struct EndRecord {
  std::int64_t step = 0;  // of the last update
  std::int64_t tokens = 0;
  std::string reason;                        // "done", "SIGTERM", "max-time", "the loss is not finite", ...
  int exit_code = 0;                         //
  double seconds = 0;                        // since this process started
  std::optional<std::int64_t> moved_a_step;  // bytes that all processes together exchanged in a step; nothing for one
  std::optional<double> val_loss;            // the last one, where there was a validation
  std::optional<double> perplexity;          //
};

// "kind": "spectrum", of spectra.jsonl. One matrix at one step. Norms and shares are of its singular values s_1 >= s_2
// >= ...
struct SpectrumRecord {
  std::int64_t step = 0;
  std::string matrix;  // "blocks.3.attention.qkv.weight.q"
  std::string of;      // "gradient" or "momentum"
  std::int64_t rows = 0, cols = 0;
  std::vector<double> singular_values;
  double stable_rank = 0;    // sum s^2 / s_1^2
  std::int64_t rank_90 = 0;  // fewest values that hold 90 % of the nuclear norm
  // For ranks below the smaller side: ||Q^T M||_* / ||M||_*, with Q from the sketch that the run's settings give. It is
  // <M, M_O> / ||M||_* for the low-rank orthogonalization M_O of M (docs/design.md).
  std::map<std::int64_t, double> captured;
  // Of what the run's orthogonalizer makes of the momentum, with k singular values that should be 1: the root mean
  // square of s^2 - 1. Negative: not measured.
  double orthogonality_error = -1;
};

// The object as one line of JSON, without the newline. `time` in UTC, "2024-05-20T12:34:56Z".
std::string to_json_line(const RunRecord& record, const std::string& time);
std::string to_json_line(const StepMetrics& record);
std::string to_json_line(const ValidationRecord& record);
std::string to_json_line(const SampleRecord& record);
std::string to_json_line(const CheckpointRecord& record);
std::string to_json_line(const EndRecord& record, const std::string& time);
std::string to_json_line(const SpectrumRecord& record);

// The last validation of that step in a metrics.jsonl; nothing where it has none, or none that is finite.
std::optional<ValidationRecord> find_validation(const std::filesystem::path& path, std::int64_t step);

// The file, to which only this process appends: each line by one write(2), so that a killed process tears at most the
// last one and a reader who follows the file sees whole lines. Every failure (say a full disk) is an Error(Exit::data)
// that names the file; a line that fails half-way is taken back.
class MetricsLog {
 public:
  // Without `resume_step` a new file, and an Error where there is one already. With it the file is continued after
  // that step: lines of later steps and a torn last line are dropped, by an atomic rewrite; a missing file is begun.
  explicit MetricsLog(std::filesystem::path path, std::optional<std::int64_t> resume_step = std::nullopt);

  void write(const RunRecord& record);
  void write(const StepMetrics& record);
  void write(const ValidationRecord& record);
  void write(const SampleRecord& record);
  void write(const CheckpointRecord& record);
  void write(const EndRecord& record);
  // A line that is JSON already, with "kind" and "step".
  void write_line(std::string line) { append(std::move(line)); }

  // Returns when all lines are on the disk: call it before a checkpoint is published, so that after a power failure the
  // log reaches at least as far as the checkpoint.
  void sync() { file_.sync(); }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void append(std::string line);

  File file_;
  std::uint64_t size_;  // bytes of whole lines
};

}  // namespace polaron

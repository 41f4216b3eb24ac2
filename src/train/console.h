// What a person sees of a run, on standard output: tables at the start, a line for every step, and on a terminal a
// progress bar below the lines. Standard error belongs to base/log.h.
//
// The functions that make text know no terminal (nor do those of format.h). Console adds the bar, and escape codes only
// where `detect_terminal` finds that they are understood.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

#include "train/format.h"
#include "train/metrics.h"

namespace polaron {

// Lines of a run ------------------------------------------------------------------------------------------------------
// "step 120/600  loss 3.2145  ppl 24.89  lr 2.00e-02  norm 0.812  212 ms  12,345 tok/s  mfu 41.2%  eta 1:02:03", then
// "clipped" or "skipped". Columns keep their places from line to line. Fields that do not fit into `width` columns (0:
// no limit) are left out, what the progress bar shows as well first.
std::string format_step_line(const StepMetrics& metrics, std::int64_t total_steps, std::optional<double> eta_seconds,
                             int width = 0);
// "validation at step 120  loss 3.2011  ppl 24.56 (27.10 before)  65,536 tokens  1.23 s"
std::string format_validation_line(const ValidationRecord& record, std::optional<double> perplexity_before = {},
                                   int width = 0);

// "checkpoint  runs/x/checkpoints/step-000120  1.2 GB  3.45 s"
std::string format_checkpoint_line(const CheckpointRecord& record, int width = 0);
// "sample at step 120" and below it the prompt with its continuation, each line after "  | ".
std::string format_sample(const SampleRecord& record, int width = 0);

struct Progress {
  std::int64_t step = 0;
  std::int64_t total_steps = 0;
  double tokens_per_s = 0;            // 0: not known yet
  std::optional<double> eta_seconds;  //
  std::string phase;                  // what goes on instead of steps, say "validation"; usually empty
};
struct Terminal {
  bool interactive = false;  // a terminal that understands the codes to redraw a line
  bool color = false;
  bool utf8 = false;
};
// " 20% ━━━━━━━───────────────────── 120/600  12,345 tok/s  eta 1:02:03", at most `width` columns.
std::string format_progress(const Progress& progress, int width, const Terminal& terminal);

// Mean time of a step over about the last 500 steps, with what happens between steps (validation, checkpoints) in it.
class EtaEstimator {
 public:
  explicit EtaEstimator(std::int64_t total_steps) : total_steps_(total_steps) {}
  // `seconds`: of any monotonic clock, when `step` was finished.
  void update(std::int64_t step, double seconds);
  std::optional<double> seconds_left() const;  // nothing before two steps are known

 private:
  std::int64_t total_steps_;
  std::int64_t last_step_ = -1;
  double last_seconds_ = 0;
  double weighted_seconds_ = 0;
  double weighted_steps_ = 0;
};

// Terminals -----------------------------------------------------------------------------------------------------------
// From whether the stream is a terminal and the variables TERM (unset, empty, "dumb": not interactive), NO_COLOR (set
// and not empty: no color) and LC_ALL, LC_CTYPE, LANG.
Terminal detect_terminal(std::FILE* stream);
int terminal_width(std::FILE* stream);  // columns now; 80 where the system does not say

// Writes everything of a run that is meant for a person. Where the stream is no terminal: plain lines, no escape codes,
// no bar. The destructor takes the bar away, also when an exception passes. For one thread.
class Console {
 public:
  struct Options {
    std::FILE* stream = stdout;
    bool quiet = false;                // writes nothing: for processes other than the first
    std::optional<Terminal> terminal;  // default: detect_terminal(stream)
    int width = 0;                     // default: terminal_width(stream), asked again for every line
  };
  Console() : Console(Options{}) {}
  explicit Console(const Options& options);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  void table(const Table& table);      // and an empty line
  void line(std::string_view text);    // above the bar; the text is taken as printable
  void warn(const std::string& text);  // log::warn without tearing the bar

  // The bar appears, at `step` of `total_steps`; step lines know the total from here on.
  void begin(std::int64_t step, std::int64_t total_steps);
  void step(const StepMetrics& metrics);
  void validation(const ValidationRecord& record);
  void sample(const SampleRecord& record);
  void checkpoint(const CheckpointRecord& record);
  // What goes on now, shown in the bar until the next step: "validation", "checkpoint". `done` of `total` when total >
  // 0.
  void phase(const std::string& what, std::int64_t done = 0, std::int64_t total = 0);
  void end();  // takes the bar away, for good

 private:
  int width() const;  // 0: no limit
  void write(std::string_view text, std::string_view style = {});
  void put(std::string_view text);
  std::string bar() const;
  void redraw();

  std::FILE* stream_;
  bool quiet_;
  Terminal terminal_;
  int fixed_width_;
  Progress progress_;
  EtaEstimator eta_{0};
  std::optional<double> perplexity_before_;
  bool bar_wanted_ = false;
  bool bar_drawn_ = false;
  std::chrono::steady_clock::time_point phase_drawn_{};
};

}  // namespace polaron

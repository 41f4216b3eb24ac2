#include "train/console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace polaron {
namespace {

constexpr Terminal plain_terminal{.interactive = true, .color = false, .utf8 = false};
constexpr Terminal color_terminal{.interactive = true, .color = true, .utf8 = true};

StepMetrics step_record(std::int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 3.2145;
  metrics.lr = 0.02;
  metrics.grad_norm = 0.8124;
  metrics.ms = 212;
  metrics.tokens_per_s = 12'345;
  metrics.mfu = 0.412;
  return metrics;
}

// A stream in memory for a Console, and what was written to it.
class Capture {
 public:
  Capture() : stream_(std::tmpfile()) {
    if (!stream_) throw std::runtime_error("no temporary file");
  }
  ~Capture() { std::fclose(stream_); }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  Console::Options options(const Terminal& terminal, int width = 80) const {
    Console::Options options;
    options.stream = stream_;
    options.terminal = terminal;
    options.width = width;
    return options;
  }
  std::FILE* stream() const { return stream_; }
  std::string text() const {
    std::rewind(stream_);
    std::string text;
    for (int c = std::fgetc(stream_); c != EOF; c = std::fgetc(stream_)) text += static_cast<char>(c);
    return text;
  }

 private:
  std::FILE* stream_;
};

// The lines that a terminal shows after `output`, which may use newline, \r, CSI K and CSI m. The last one is the
// cursor's.
std::vector<std::string> screen(const std::string& output) {
  std::vector<std::string> lines(1);
  std::size_t column = 0;
  for (std::size_t i = 0; i < output.size(); ++i) {
    if (output[i] == '\n') {
      lines.emplace_back();
      column = 0;
    } else if (output[i] == '\r') {
      column = 0;
    } else if (output[i] == '\x1b') {
      const std::size_t end = output.find_first_of("Km", i);
      if (end == std::string::npos || output[i + 1] != '[') throw std::runtime_error("unknown escape code");
      if (output[end] == 'K') lines.back().resize(column);
      i = end;
    } else {
      lines.back().resize(std::max(lines.back().size(), column + 1), ' ');
      lines.back()[column++] = output[i];
    }
  }
  return lines;
}

// Sets or (nullptr) unsets a variable for the time of its life.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* const before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) { value ? ::setenv(name_, value, 1) : ::unsetenv(name_); }
  const char* name_;
  std::optional<std::string> before_;
};

TEST(StepLine, says_everything_where_there_is_room) {
  StepMetrics metrics = step_record(12);
  EXPECT_EQ(format_step_line(metrics, 600, 3'723.0),
            "step  12/600  loss  3.2145  ppl   24.89  lr 2.00e-02  norm   0.812    212 ms   12,345 tok/s  mfu 41.2%  "
            "eta  1:02:03");
  metrics.clipped = true;
  metrics.mfu.reset();
  EXPECT_EQ(format_step_line(metrics, 600, {}),
            "step  12/600  loss  3.2145  ppl   24.89  lr 2.00e-02  norm   0.812    212 ms   12,345 tok/s  mfu   n/a  "
            "eta        -  clipped");
}

TEST(StepLine, keeps_its_columns_over_the_range_of_a_run) {
  const std::string usual = format_step_line(step_record(1), 10'000, 12.0);
  StepMetrics metrics = step_record(10'000);
  metrics.loss = 10.98;
  metrics.grad_norm = 123'456;
  metrics.lr = 0;
  metrics.ms = 12'345;
  metrics.tokens_per_s = 43.8;
  metrics.mfu = 0.004;
  EXPECT_EQ(format_step_line(metrics, 10'000, 36'000.0).size(), usual.size());
  metrics.loss = 12'345'678;
  metrics.tokens_per_s = 12'345'678;
  EXPECT_EQ(format_step_line(metrics, 10'000, 36'000.0).size(), usual.size());
}

TEST(StepLine, shows_numbers_that_are_none) {
  StepMetrics metrics = step_record(1);
  metrics.loss = std::nan("");
  metrics.grad_norm = std::numeric_limits<double>::infinity();
  metrics.skipped = true;
  const std::string line = format_step_line(metrics, 10, {});
  EXPECT_NE(line.find("loss     nan  ppl     nan"), std::string::npos) << line;
  EXPECT_NE(line.find("norm     inf"), std::string::npos) << line;
  EXPECT_TRUE(line.ends_with("skipped")) << line;
}

TEST(StepLine, never_exceeds_the_width_and_keeps_step_and_loss) {
  StepMetrics metrics = step_record(12);
  metrics.clipped = true;
  for (int width = 40; width <= 130; ++width) {
    const std::string line = format_step_line(metrics, 600, 3'723.0, width);
    EXPECT_LE(display_width(line), width);
    EXPECT_TRUE(line.starts_with("step  12/600  loss  3.2145")) << line;
    EXPECT_TRUE(line.ends_with("clipped")) << line;
  }
  EXPECT_EQ(format_step_line(metrics, 600, 3'723.0, 60), "step  12/600  loss  3.2145  lr 2.00e-02  clipped");
}

TEST(ValidationLine, compares_with_the_one_before) {
  const ValidationRecord record{
      .step = 120, .tokens = 61'440, .val_loss = 3.2011, .perplexity = 24.56, .val_tokens = 65'536, .ms = 1'234};
  EXPECT_EQ(format_validation_line(record), "validation at step 120  loss 3.2011  ppl 24.56  65,536 tokens  1.23 s");
  EXPECT_EQ(format_validation_line(record, 27.1, 65), "validation at step 120  loss 3.2011  ppl 24.56 (27.10 before)");
}

TEST(Sample, cannot_command_the_terminal_and_fits_it) {
  const SampleRecord record{.step = 7, .tokens = 0, .prompt = "The ", .text = "\x1b]0;title\x07 quick\nbrown fox"};
  EXPECT_EQ(format_sample(record, 14),
            "sample at step 7\n"
            "  | The\n"
            "  | \xEF\xBF\xBD]0;title\xEF\xBF\xBD\n"
            "  | quick\n"
            "  | brown fox\n");
}

// Of `filled` and `rest` columns.
std::string bar(std::size_t filled, std::size_t rest) { return std::string(filled, '=') + std::string(rest, '-'); }

TEST(ProgressBar, fills_with_the_run_and_says_when_it_ends) {
  Progress progress;
  progress.total_steps = 40;
  EXPECT_EQ(format_progress(progress, 50, plain_terminal), "  0% " + bar(0, 32) + "  0/40  eta -");
  progress.step = 10;
  progress.eta_seconds = 61;
  progress.tokens_per_s = 950;
  EXPECT_EQ(format_progress(progress, 60, plain_terminal), " 25% " + bar(7, 21) + " 10/40  950 tok/s  eta 1:01");
  progress.step = 40;
  progress.phase = "validation  3/16";
  EXPECT_EQ(format_progress(progress, 60, plain_terminal), "100% " + bar(21, 0) + " 40/40  validation  3/16  eta 1:01");
}

TEST(ProgressBar, gives_up_its_words_before_it_wraps) {
  Progress progress{.step = 2, .total_steps = 600, .tokens_per_s = 12'345, .eta_seconds = 3'723.0, .phase = ""};
  EXPECT_EQ(format_progress(progress, 36, plain_terminal), "  0% " + bar(0, 10) + "   2/600  eta 1:02:03");
  EXPECT_EQ(format_progress(progress, 35, plain_terminal), "  0% " + bar(0, 18) + " eta 1:02:03");
  for (int width = 4; width <= 200; ++width) {
    EXPECT_LE(display_width(format_progress(progress, width, plain_terminal)), width);
    EXPECT_EQ(display_width(format_progress(progress, width, {.interactive = true, .color = false, .utf8 = true})),
              display_width(format_progress(progress, width, plain_terminal)));
  }
}

TEST(ProgressBar, a_run_of_unknown_length_is_no_division_by_zero) {
  EXPECT_TRUE(format_progress({}, 60, plain_terminal).starts_with("  0% "));
}

TEST(Eta, is_the_mean_step_time_what_happens_between_steps_included) {
  EtaEstimator eta(100);
  EXPECT_FALSE(eta.seconds_left());
  eta.update(0, 50.0);
  EXPECT_FALSE(eta.seconds_left());
  double now = 50;
  for (int step = 1; step <= 50; ++step) {
    now += step % 10 == 0 ? 11 : 1;  // every tenth step a validation of 10 s
    eta.update(step, now);
  }
  EXPECT_NEAR(*eta.seconds_left(), 100.0, 2.5);
  eta.update(100, now + 100);
  EXPECT_EQ(*eta.seconds_left(), 0.0);
}

TEST(Eta, follows_a_change_of_pace) {
  EtaEstimator eta(10'000);
  for (int step = 0; step <= 1'000; ++step) eta.update(step, step);
  for (int step = 1; step <= 3'000; ++step) eta.update(1'000 + step, 1'000 + 3.0 * step);
  EXPECT_NEAR(*eta.seconds_left() / 6'000, 3.0, 0.02);
}

TEST(Eta, of_a_resumed_run_counts_only_its_own_steps) {
  EtaEstimator eta(1'000);
  eta.update(500, 10.0);
  eta.update(501, 12.0);
  EXPECT_DOUBLE_EQ(*eta.seconds_left(), 998.0);
}

TEST(Console, writes_plain_lines_where_there_is_no_terminal) {
  const Capture capture;
  {
    Console console(capture.options(Terminal{.interactive = false, .color = false, .utf8 = true}, 20));
    console.table({"model", {}, {{"preset", "gpt2"}}});
    console.begin(0, 2);
    console.phase("validation", 1, 2);
    console.validation({});
    console.step(step_record(1));
    console.sample({.step = 1, .tokens = 1, .prompt = "a", .text = "b"});
    console.line("bye");
  }
  const std::string text = capture.text();
  EXPECT_EQ(text.find('\x1b'), std::string::npos) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos) << text;
  const std::vector<std::string> lines = screen(text);
  ASSERT_EQ(lines.size(), 9U) << text;
  EXPECT_EQ(lines[0] + "|" + lines[1] + "|" + lines[2], "model|preset  gpt2|");
  EXPECT_TRUE(lines[3].starts_with("validation at step 0"));
  EXPECT_TRUE(lines[4].starts_with("step 1/2") && lines[4].find("eta ") != std::string::npos) << lines[4];
  EXPECT_EQ(lines[5] + lines[6] + lines[7] + lines[8], "sample at step 1  | abbye");
}

TEST(Console, the_bar_stays_below_whole_lines) {
  const Capture capture;
  Console console(capture.options(color_terminal, 60));
  console.line("before");
  console.begin(0, 3);
  for (std::int64_t step = 1; step <= 3; ++step) {
    console.step(step_record(step));
    const std::vector<std::string> lines = screen(capture.text());
    ASSERT_EQ(lines.size(), static_cast<std::size_t>(step) + 2);
    EXPECT_EQ(lines[0], "before");
    EXPECT_EQ(lines[static_cast<std::size_t>(step)],
              "step " + std::to_string(step) + "/3  loss  3.2145  lr 2.00e-02  norm   0.812");
    EXPECT_NE(lines.back().find(std::to_string(step) + "/3  12,345 tok/s"), std::string::npos) << lines.back();
  }
  console.phase("checkpoint");
  EXPECT_NE(screen(capture.text()).back().find("3/3  checkpoint"), std::string::npos);
  console.checkpoint({.step = 3, .tokens = 9, .path = "runs/x/checkpoints/step-3", .bytes = 1'200'000, .ms = 40});
  EXPECT_EQ(screen(capture.text())[4], "checkpoint  runs/x/checkpoints/step-3  1.2 MB  40 ms");
  console.end();
  EXPECT_EQ(screen(capture.text()).back(), "");
  console.line("done");
  EXPECT_EQ(screen(capture.text()).back(), "");
}

TEST(Console, the_bar_is_gone_after_an_exception) {
  const Capture capture;
  try {
    Console console(capture.options(plain_terminal));
    console.begin(0, 10);
    console.step(step_record(1));
    EXPECT_NE(screen(capture.text()).back(), "");
    throw std::runtime_error("disk full");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(screen(capture.text()).size(), 2U);
  EXPECT_EQ(screen(capture.text()).back(), "");
}

TEST(Console, without_color_moves_the_cursor_but_sets_no_color) {
  const Capture capture;
  Console console(capture.options(plain_terminal));
  console.begin(0, 10);
  StepMetrics skipped = step_record(1);
  skipped.skipped = true;
  console.step(skipped);
  console.validation({});
  const std::string text = capture.text();
  for (std::size_t at = text.find('\x1b'); at != std::string::npos; at = text.find('\x1b', at + 1)) {
    EXPECT_EQ(text.substr(at, 3), "\x1b[K");
  }
}

TEST(Console, of_another_process_is_quiet) {
  const Capture capture;
  {
    Console::Options options = capture.options(color_terminal);
    options.quiet = true;
    Console console(options);
    console.table({"t", {}, {{"a"}}});
    console.begin(0, 1);
    console.phase("validation");
    console.step(step_record(1));
    console.line("x");
    console.end();
  }
  EXPECT_EQ(capture.text(), "");
}

TEST(TerminalDetection, a_file_is_no_terminal) {
  const Variable term("TERM", "xterm");
  const Capture capture;
  EXPECT_FALSE(detect_terminal(capture.stream()).interactive);
  EXPECT_EQ(terminal_width(capture.stream()), 80);
}

TEST(TerminalDetection, respects_term_no_color_locale_and_width) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || ::grantpt(master) != 0 || ::unlockpt(master) != 0) GTEST_SKIP() << "no pseudo-terminals here";
  std::FILE* const terminal = ::fdopen(::open(::ptsname(master), O_RDWR | O_NOCTTY), "w");
  ASSERT_NE(terminal, nullptr);
  {
    const Variable term("TERM", "xterm-256color");
    const Variable no_color("NO_COLOR", "");  // set but empty counts as not set
    const Variable all("LC_ALL", "de_DE.utf8");
    const Terminal found = detect_terminal(terminal);
    EXPECT_TRUE(found.interactive && found.color && found.utf8);
    const Variable set("NO_COLOR", "1");
    EXPECT_TRUE(detect_terminal(terminal).interactive);
    EXPECT_FALSE(detect_terminal(terminal).color);
    const Variable c("LC_ALL", "C");
    const Variable lang("LANG", "en_US.UTF-8");  // LC_ALL goes before
    EXPECT_FALSE(detect_terminal(terminal).utf8);
  }
  for (const char* name : {"dumb", "", static_cast<const char*>(nullptr)}) {
    const Variable term("TERM", name);
    const Terminal found = detect_terminal(terminal);
    EXPECT_FALSE(found.interactive || found.color);
  }
  struct winsize size {};
  size.ws_col = 60;
  ASSERT_EQ(::ioctl(master, TIOCSWINSZ, &size), 0);
  EXPECT_EQ(terminal_width(terminal), 60);
  std::fclose(terminal);
  ::close(master);
}

}  // namespace
}  // namespace polaron

#include "train/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "base/log.h"
#include "train/duration.h"

namespace polaron {
namespace {

constexpr std::string_view erase_line = "\r\x1b[K";
constexpr std::string_view bold = "\x1b[1m";
constexpr std::string_view dim = "\x1b[2m";
constexpr std::string_view yellow = "\x1b[33m";
constexpr std::string_view cyan = "\x1b[36m";
constexpr std::string_view plain = "\x1b[0m";

std::string format_loss(double loss) {
  return std::abs(loss) < 1000 || !std::isfinite(loss) ? fmt::format("{:.4f}", loss) : fmt::format("{:.1e}", loss);
}

std::string format_norm(double norm) {
  return norm < 1000 || !std::isfinite(norm) ? fmt::format("{:.3f}", norm) : fmt::format("{:.1e}", norm);
}

std::string format_rate(double tokens_per_s) {
  if (!std::isfinite(tokens_per_s)) return "n/a";
  if (tokens_per_s < 100) return fmt::format("{:.1f}", tokens_per_s);
  const auto rounded = std::llround(tokens_per_s);
  return rounded < 1'000'000 ? format_grouped(rounded) : format_count(rounded);
}

std::string format_step(std::int64_t step, std::int64_t total) {
  if (total <= 0) return std::to_string(step);
  const std::string last = std::to_string(total);
  return fmt::format("{:>{}}/{}", step, last.size(), last);
}

// A part of a line; where the line is too long, the part with the largest `drop` goes first, and those of 0 never.
struct Field {
  std::string text;
  int drop = 0;
};

std::string join_fields(std::vector<Field> fields, int width) {
  const auto total = [&fields] {
    int sum = -2;
    for (const Field& field : fields) sum += display_width(field.text) + 2;
    return sum;
  };
  while (width > 0 && total() > width) {
    const auto largest = std::ranges::max_element(fields, {}, &Field::drop);
    if (largest->drop == 0) break;
    fields.erase(largest);
  }
  std::string line;
  for (const Field& field : fields) line += (line.empty() ? "" : "  ") + field.text;
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

bool environment_says_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* const value = std::getenv(name);
    if (!value || !*value) continue;
    std::string text(value);
    for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string format_step_line(const StepMetrics& metrics, std::int64_t total_steps, std::optional<double> eta_seconds,
                             int width) {
  // Padded to what they need in an ordinary run, so that columns keep their places. The bar shows rate and time, too,
  // and the perplexity says nothing that the loss does not.
  return join_fields({{"step " + format_step(metrics.step, total_steps)},
                      {fmt::format("loss {:>7}", format_loss(metrics.loss))},
                      {fmt::format("ppl {:>7}", format_perplexity(std::exp(metrics.loss))), 3},
                      {fmt::format("lr {:.2e}", metrics.lr), 1},
                      {fmt::format("norm {:>7}", format_norm(metrics.grad_norm)), 2},
                      {fmt::format("{:>8}", format_milliseconds(metrics.ms)), 5},
                      {fmt::format("{:>7} tok/s", format_rate(metrics.tokens_per_s)), 4},
                      {fmt::format("mfu {:>5}", format_percent(metrics.mfu)), 6},
                      {fmt::format("eta {:>8}", eta_seconds ? format_duration(*eta_seconds) : "-"), 7},
                      {fmt::format("{:7}", metrics.skipped   ? "skipped"
                                           : metrics.clipped ? "clipped"
                                                             : "")}},
                     width);
}

std::string format_validation_line(const ValidationRecord& record, std::optional<double> perplexity_before, int width) {
  std::string perplexity = "ppl " + format_perplexity(record.perplexity);
  if (perplexity_before) perplexity += fmt::format(" ({} before)", format_perplexity(*perplexity_before));
  return join_fields({{fmt::format("validation at step {}", record.step)},
                      {"loss " + format_loss(record.val_loss)},
                      {perplexity},
                      {format_grouped(record.val_tokens) + " tokens", 2},
                      {format_milliseconds(record.ms), 1}},
                     width);
}

std::string format_checkpoint_line(const CheckpointRecord& record, int width) {
  return join_fields(
      {{"checkpoint  " + record.path}, {format_bytes(record.bytes), 1}, {format_milliseconds(record.ms), 2}}, width);
}

std::string format_sample(const SampleRecord& record, int width) {
  return fmt::format("sample at step {}\n{}", record.step, wrap(printable(record.prompt + record.text), "  | ", width));
}

std::string format_progress(const Progress& progress, int width, const Terminal& terminal) {
  const double fraction =
      progress.total_steps > 0
          ? std::clamp(static_cast<double>(progress.step) / static_cast<double>(progress.total_steps), 0.0, 1.0)
          : 0.0;
  const std::string percent = fmt::format("{:3}%", static_cast<int>(std::floor(100 * fraction)));
  const std::string steps = format_step(progress.step, progress.total_steps);
  const std::string eta = "eta " + (progress.eta_seconds ? format_duration(*progress.eta_seconds) : "-");
  std::string activity = progress.phase;
  if (activity.empty() && progress.tokens_per_s > 0) activity = format_rate(progress.tokens_per_s) + " tok/s";

  // What stands to the right of the bar: as much as leaves the bar ten columns.
  constexpr int shortest = 10;
  constexpr int longest = 60;
  const std::array<std::string, 4> variants{fmt::format("{}  {}  {}", steps, activity, eta),
                                            fmt::format("{}  {}", steps, eta), eta, ""};
  const auto room = [&](const std::string& text) { return width - display_width(percent) - display_width(text) - 2; };
  std::size_t variant = activity.empty() ? 1 : 0;
  while (variant + 1 < variants.size() && room(variants[variant]) < shortest) ++variant;
  const std::string& right = variants[variant];
  const int columns = std::min(room(right), longest);
  if (columns < 3) return percent;

  const int filled = static_cast<int>(std::floor(fraction * columns));
  std::string done;
  std::string rest;
  for (int i = 0; i < filled; ++i) done += terminal.utf8 ? "━" : "=";
  for (int i = filled; i < columns; ++i) rest += terminal.utf8 ? "─" : "-";
  if (terminal.color) {
    done = fmt::format("{}{}{}", cyan, done, plain);
    rest = fmt::format("{}{}{}", dim, rest, plain);
  }
  return fmt::format("{} {}{}{}{}", percent, done, rest, right.empty() ? "" : " ", right);
}

void EtaEstimator::update(std::int64_t step, double seconds) {
  if (last_step_ >= 0 && step > last_step_) {
    const auto steps = static_cast<double>(step - last_step_);
    const double decay = std::pow(0.998, steps);
    weighted_seconds_ = weighted_seconds_ * decay + (seconds - last_seconds_);
    weighted_steps_ = weighted_steps_ * decay + steps;
  }
  last_step_ = step;
  last_seconds_ = seconds;
}

std::optional<double> EtaEstimator::seconds_left() const {
  if (weighted_steps_ <= 0) return std::nullopt;
  const auto left = static_cast<double>(std::max<std::int64_t>(total_steps_ - last_step_, 0));
  return left * weighted_seconds_ / weighted_steps_;
}

Terminal detect_terminal(std::FILE* stream) {
  const char* const term = std::getenv("TERM");
  const char* const no_color = std::getenv("NO_COLOR");
  Terminal terminal;
  terminal.interactive = ::isatty(::fileno(stream)) == 1 && term && *term && std::string_view(term) != "dumb";
  terminal.color = terminal.interactive && !(no_color && *no_color);
  terminal.utf8 = environment_says_utf8();
  return terminal;
}

int terminal_width(std::FILE* stream) {
  struct winsize size {};
  const bool known = ::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

Console::Console(const Options& options)
    : stream_(options.stream),
      quiet_(options.quiet),
      terminal_(options.terminal ? *options.terminal : detect_terminal(options.stream)),
      fixed_width_(options.width) {}

Console::~Console() {
  try {
    end();
  } catch (...) {  // no memory for a few bytes: the bar stays
  }
}

int Console::width() const {
  if (!terminal_.interactive) return 0;
  return fixed_width_ > 0 ? fixed_width_ : terminal_width(stream_);
}

void Console::write(std::string_view text, std::string_view style) {
  if (quiet_) return;
  std::string all;  // one write: no moment without the bar
  if (bar_drawn_) all += erase_line;
  bar_drawn_ = false;
  if (terminal_.color && !style.empty()) {
    all.append(style).append(text).append(plain);
  } else {
    all += text;
  }
  all += '\n';
  if (bar_wanted_ && terminal_.interactive) {
    all += bar();
    bar_drawn_ = true;
  }
  put(all);
}

// The cursor goes back to the first column, so that what others write there (a shell's prompt, an error) starts a line.
std::string Console::bar() const {
  return fmt::format("{}{}\r", erase_line, format_progress(progress_, width() - 1, terminal_));
}

void Console::put(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stream_);
  std::fflush(stream_);
}

void Console::table(const Table& table) { write(format_table(table, width())); }

void Console::line(std::string_view text) { write(text); }

void Console::warn(const std::string& text) {
  if (bar_drawn_) put(erase_line);
  bar_drawn_ = false;
  log::warn(text);
  redraw();
}

void Console::begin(std::int64_t step, std::int64_t total_steps) {
  progress_ = Progress{};
  progress_.step = step;
  progress_.total_steps = total_steps;
  eta_ = EtaEstimator(total_steps);
  eta_.update(step, monotonic_seconds());
  bar_wanted_ = true;
  redraw();
}

void Console::step(const StepMetrics& metrics) {
  eta_.update(metrics.step, monotonic_seconds());
  const double before = progress_.tokens_per_s;
  progress_.step = metrics.step;
  progress_.tokens_per_s = before > 0 ? 0.9 * before + 0.1 * metrics.tokens_per_s : metrics.tokens_per_s;
  progress_.eta_seconds = eta_.seconds_left();
  progress_.phase.clear();
  write(format_step_line(metrics, progress_.total_steps, progress_.eta_seconds, width()),
        metrics.skipped ? yellow : std::string_view());
}

void Console::validation(const ValidationRecord& record) {
  progress_.phase.clear();
  write(format_validation_line(record, perplexity_before_, width()), bold);
  perplexity_before_ = record.perplexity;
}

void Console::sample(const SampleRecord& record) {
  progress_.phase.clear();
  std::string text = format_sample(record, width());
  text.pop_back();
  write(text);
}

void Console::checkpoint(const CheckpointRecord& record) {
  progress_.phase.clear();
  write(format_checkpoint_line(record, width()));
}

void Console::phase(const std::string& what, std::int64_t done, std::int64_t total) {
  const auto now = std::chrono::steady_clock::now();
  const bool same = progress_.phase.starts_with(what);
  if (same && done < total && now - phase_drawn_ < std::chrono::milliseconds(100)) return;
  progress_.phase = total > 0 ? fmt::format("{} {}", what, format_step(done, total)) : what;
  phase_drawn_ = now;
  redraw();
}

void Console::end() {
  bar_wanted_ = false;
  if (bar_drawn_) put(erase_line);
  bar_drawn_ = false;
}

void Console::redraw() {
  if (quiet_ || !bar_wanted_ || !terminal_.interactive) return;
  put(bar());
  bar_drawn_ = true;
}

}  // namespace polaron

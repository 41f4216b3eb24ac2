#include "train/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "io/atomic.h"

namespace polaron {
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kLargestLog = std::uint64_t{1} << 34U;  // bytes

// Keys stay in the order in which they are written, for the sake of people who read the file.
class Line {
 public:
  Line(const char* kind, std::int64_t step) : json_{{"kind", kind}, {"step", step}} {}

  Line& add(const char* key, double value) {
    if (std::isfinite(value)) {
      json_[key] = value;
    } else {
      json_[key] = nullptr;
      json_[std::string(key) + "_nonfinite"] = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    }
    return *this;
  }
  Line& add(const char* key, const std::optional<double>& value) {
    if (value) return add(key, *value);
    json_[key] = nullptr;
    return *this;
  }
  Line& add(const char* key, const std::optional<std::int64_t>& value) {
    return value ? set(key, *value) : set(key, nullptr);
  }
  Line& add(const char* key, std::int64_t value) { return set(key, value); }
  Line& add(const char* key, std::uint64_t value) { return set(key, value); }
  Line& add(const char* key, int value) { return set(key, value); }
  Line& add(const char* key, bool value) { return set(key, value); }
  Line& add(const char* key, const std::string& value) { return set(key, value); }
  Line& add(const char* key, const nlohmann::ordered_json& value) { return set(key, value); }

  std::string text() const { return json_.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace); }

 private:
  template <typename T>
  Line& set(const char* key, const T& value) {
    json_[key] = value;
    return *this;
  }

  nlohmann::ordered_json json_;
};

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  struct tm parts {};
  ::gmtime_r(&now, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min, parts.tm_sec);
}

// Whether a resumed run keeps the line: a JSON object of a step up to `resume_step`, or one without a step.
enum class Verdict { keep, later, broken };
Verdict judge(std::string_view line, std::int64_t resume_step) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Verdict::broken;
  const auto step = json.find("step");
  if (step == json.end() || !step->is_number()) return Verdict::keep;
  return step->get<double>() <= static_cast<double>(resume_step) ? Verdict::keep : Verdict::later;
}

std::string lines_up_to(const std::string& text, std::int64_t resume_step, const fs::path& path) {
  std::string kept;
  kept.reserve(text.size());
  std::size_t broken_inside = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t newline = text.find('\n', begin);
    const bool torn = newline == std::string::npos;
    const std::string_view line = std::string_view(text).substr(begin, torn ? std::string::npos : newline - begin);
    begin = torn ? text.size() : newline + 1;
    const Verdict verdict = judge(line, resume_step);
    if (verdict == Verdict::keep) kept.append(line).append("\n");
    if (verdict == Verdict::broken && begin < text.size()) ++broken_inside;
  }
  if (broken_inside > 0) {
    log::warn(fmt::format("{} {} of '{}' held no JSON object and {} dropped.", broken_inside,
                          broken_inside == 1 ? "line" : "lines", path.string(), broken_inside == 1 ? "was" : "were"));
  }
  return kept;
}

File open_log(const fs::path& path, std::optional<std::int64_t> resume_step) {
  std::error_code ignored;  // whatever hinders also hinders open(), which says it
  if (resume_step && fs::exists(fs::symlink_status(path, ignored))) {
    const std::string text = read_text_file(path, kLargestLog);
    const std::string kept = lines_up_to(text, *resume_step, path);
    if (kept != text) write_file_atomically(path, kept);
  }
  const int only_new = resume_step ? 0 : O_EXCL;
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | only_new, 0666);
  if (descriptor < 0 && errno == EEXIST) {
    throw Error(Exit::data, fmt::format("'{}' exists already: its folder holds another run. Continue that run with "
                                        "--resume, or choose another output folder.",
                                        path.string()));
  }
  if (descriptor < 0) throw_file_error("create", path, errno);
  return File(descriptor, path);
}

}  // namespace

std::string to_json_line(const RunRecord& r, const std::string& time) {
  return Line("run", r.step)
      .add("name", r.name)
      .add("version", r.version)
      .add("time", time)
      .add("device", r.device)
      .add("threads", r.threads)
      .add("processes", r.processes)
      .add("precision", r.precision)
      .add("model", r.model)
      .add("parameters", r.parameters)
      .add("optimizer", r.optimizer)
      .add("seed", r.seed)
      .add("steps", r.steps)
      .add("tokens_per_step", r.tokens_per_step)
      .add("flops_per_token", r.flops_per_token)
      .add("gemm_flops", r.gemm_flops)
      .add("datasheet_flops", r.datasheet_flops)
      .text();
}

std::string to_json_line(const StepMetrics& r) {
  return Line("step", r.step)
      .add("tokens", r.tokens)
      .add("loss", r.loss)
      .add("lr", r.lr)
      .add("grad_norm", r.grad_norm)
      .add("clipped", r.clipped)
      .add("skipped", r.skipped)
      .add("ms", r.ms)
      .add("tokens_per_s", r.tokens_per_s)
      .add("mfu", r.mfu)
      .add("mfu_datasheet", r.mfu_datasheet)
      .add("mfu_convention", r.mfu_convention)
      .add("memory", r.memory)
      .text();
}

std::string to_json_line(const ValidationRecord& r) {
  return Line("validation", r.step)
      .add("tokens", r.tokens)
      .add("val_loss", r.val_loss)
      .add("perplexity", r.perplexity)
      .add("val_tokens", r.val_tokens)
      .add("ms", r.ms)
      .text();
}

std::string to_json_line(const SampleRecord& r) {
  return Line("sample", r.step).add("tokens", r.tokens).add("prompt", r.prompt).add("text", r.text).text();
}

std::string to_json_line(const CheckpointRecord& r) {
  return Line("checkpoint", r.step)
      .add("tokens", r.tokens)
      .add("path", r.path)
      .add("bytes", r.bytes)
      .add("ms", r.ms)
      .text();
}

std::string to_json_line(const EndRecord& r, const std::string& time) {
  return Line("end", r.step)
      .add("tokens", r.tokens)
      .add("time", time)
      .add("reason", r.reason)
      .add("exit_code", r.exit_code)
      .add("seconds", r.seconds)
      .add("moved_a_step", r.moved_a_step)
      .add("val_loss", r.val_loss)
      .add("perplexity", r.perplexity)
      .text();
}

std::string to_json_line(const SpectrumRecord& r) {
  Line line("spectrum", r.step);
  line.add("matrix", r.matrix)
      .add("of", r.of)
      .add("rows", r.rows)
      .add("cols", r.cols)
      .add("stable_rank", r.stable_rank)
      .add("rank_90", r.rank_90);
  if (!r.captured.empty()) {
    nlohmann::ordered_json shares;
    for (const auto& [rank, share] : r.captured) shares[std::to_string(rank)] = share;
    line.add("captured", shares);
  }
  if (r.orthogonality_error >= 0) line.add("orthogonality_error", r.orthogonality_error);
  return line.add("singular_values", nlohmann::ordered_json(r.singular_values)).text();
}

std::optional<ValidationRecord> find_validation(const fs::path& path, std::int64_t step) {
  const std::string text = read_text_file(path, kLargestLog);
  const std::string beginning = fmt::format("\n{{\"kind\":\"validation\",\"step\":{},", step);
  const std::size_t newline = text.rfind(beginning);  // a run's line comes before it
  if (newline == std::string::npos) return std::nullopt;
  const auto json = nlohmann::json::parse(text.substr(newline + 1, text.find('\n', newline + 1) - newline - 1), nullptr,
                                          /*allow_exceptions=*/false);
  const auto number = [&](const char* key) { return json.is_object() && json.contains(key) && json[key].is_number(); };
  for (const char* key : {"tokens", "val_loss", "perplexity", "val_tokens", "ms"}) {
    if (!number(key)) return std::nullopt;
  }
  return ValidationRecord{step, json["tokens"], json["val_loss"], json["perplexity"], json["val_tokens"], json["ms"]};
}

MetricsLog::MetricsLog(fs::path path, std::optional<std::int64_t> resume_step)
    : file_(open_log(path, resume_step)), size_(file_.size()) {}

void MetricsLog::write(const RunRecord& record) { append(to_json_line(record, utc_now())); }
void MetricsLog::write(const StepMetrics& record) { append(to_json_line(record)); }
void MetricsLog::write(const ValidationRecord& record) { append(to_json_line(record)); }
void MetricsLog::write(const SampleRecord& record) { append(to_json_line(record)); }
void MetricsLog::write(const CheckpointRecord& record) { append(to_json_line(record)); }
void MetricsLog::write(const EndRecord& record) { append(to_json_line(record, utc_now())); }

void MetricsLog::append(std::string line) {
  line += '\n';
  try {
    file_.write_all(std::as_bytes(std::span(line)));
  } catch (const Error&) {
    // A full disk may have taken the beginning of the line. Where even this fails, the next resume drops the torn line.
    [[maybe_unused]] const int result = ::ftruncate(file_.descriptor(), static_cast<off_t>(size_));
    throw;
  }
  size_ += line.size();
}

}  // namespace polaron

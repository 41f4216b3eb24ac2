#include "train/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/helpers.h"

namespace polaron {
namespace {

using nlohmann::json;
using test::get;
using test::put;
using test::TestFolder;

constexpr double infinity = std::numeric_limits<double>::infinity();

StepMetrics step_record(std::int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.tokens = 512 * step;
  metrics.loss = 11.0 / (1.0 + 0.1 * static_cast<double>(step));
  metrics.lr = 0.02;
  metrics.grad_norm = 0.75;
  metrics.ms = 212.5;
  metrics.tokens_per_s = 2409.4;
  metrics.mfu = 0.41;
  metrics.mfu_convention = "6N+6LCT";
  metrics.memory = 123'456'789;
  return metrics;
}

std::vector<json> lines_of(const std::filesystem::path& path) {
  std::vector<json> lines;
  std::istringstream text(get(path));
  for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
  return lines;
}

std::vector<std::int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<std::int64_t> steps;
  for (const json& line : lines_of(path)) steps.push_back(line.at("step"));
  return steps;
}

TEST(MetricsLine, doubles_read_back_to_the_same_value) {
  std::mt19937_64 random(7);
  std::vector<double> values{
      0.0, -0.0, 0.1, 1.0 / 3.0, 1e-300, 5e-324, 1.7e308, 1e15, 1e16 + 2, 123456789.0, static_cast<double>(3.2145F)};
  while (values.size() < 3000) {
    const auto value = std::bit_cast<double>(random());
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const double value : values) {
    StepMetrics metrics = step_record(1);
    metrics.loss = value;
    const auto back = json::parse(to_json_line(metrics)).at("loss").get<double>();
    ASSERT_EQ(std::bit_cast<std::uint64_t>(back), std::bit_cast<std::uint64_t>(value)) << value;
  }
}

TEST(MetricsLine, a_number_that_json_lacks_is_null_with_its_name_beside_it) {
  StepMetrics metrics = step_record(3);
  metrics.loss = std::nan("");
  metrics.grad_norm = infinity;
  metrics.mfu = -infinity;
  const json line = json::parse(to_json_line(metrics));
  EXPECT_TRUE(line.at("loss").is_null());
  EXPECT_EQ(line.at("loss_nonfinite"), "nan");
  EXPECT_TRUE(line.at("grad_norm").is_null());
  EXPECT_EQ(line.at("grad_norm_nonfinite"), "inf");
  EXPECT_EQ(line.at("mfu_nonfinite"), "-inf");
  EXPECT_FALSE(line.contains("lr_nonfinite"));
}

TEST(MetricsLine, what_is_unknown_is_null_without_a_flag) {
  StepMetrics metrics = step_record(3);
  metrics.mfu.reset();
  const json line = json::parse(to_json_line(metrics));
  EXPECT_TRUE(line.at("mfu").is_null());
  EXPECT_TRUE(line.at("mfu_datasheet").is_null());
  EXPECT_FALSE(line.contains("mfu_nonfinite"));
  EXPECT_TRUE(json::parse(to_json_line(EndRecord{}, "")).at("perplexity").is_null());
}

TEST(MetricsLine, a_step_has_the_documented_keys) {
  EXPECT_EQ(to_json_line(step_record(10)),
            R"({"kind":"step","step":10,"tokens":5120,"loss":5.5,"lr":0.02,"grad_norm":0.75,"clipped":false,)"
            R"("skipped":false,"ms":212.5,"tokens_per_s":2409.4,"mfu":0.41,"mfu_datasheet":null,)"
            R"("mfu_convention":"6N+6LCT","memory":123456789})");
}

TEST(MetricsLine, a_run_keeps_its_whole_seed_and_says_what_it_is) {
  RunRecord run;
  run.name = "quickstart";
  run.seed = std::numeric_limits<std::uint64_t>::max();
  run.parameters = 124'439'808;
  run.flops_per_token = 8.5e8;
  run.gemm_flops = 3.2e11;
  const json line = json::parse(to_json_line(run, "2024-05-20T12:34:56Z"));
  EXPECT_EQ(line.at("kind"), "run");
  EXPECT_EQ(line.at("time"), "2024-05-20T12:34:56Z");
  EXPECT_EQ(line.at("seed").get<std::uint64_t>(), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(line.at("parameters"), 124'439'808);
  EXPECT_EQ(line.at("gemm_flops"), 3.2e11);
  EXPECT_TRUE(line.at("datasheet_flops").is_null());
}

TEST(MetricsLine, any_sample_stays_on_one_line_and_is_utf8) {
  SampleRecord sample;
  sample.prompt = "say \"hi\"\n";
  sample.text = std::string("a\nb\r\0\x1b[31m caf\xC3\xA9 \xff\xC3(", 19);
  const std::string line = to_json_line(sample);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.find('\r'), std::string::npos);
  const json parsed = json::parse(line);
  EXPECT_EQ(parsed.at("prompt"), sample.prompt);
  EXPECT_EQ(parsed.at("text"), std::string("a\nb\r\0\x1b[31m caf\xC3\xA9 \xEF\xBF\xBD\xEF\xBF\xBD(", 23));
}

TEST(MetricsLog, each_kind_is_a_whole_line_as_soon_as_it_is_written) {
  const TestFolder folder;
  MetricsLog log(folder / "metrics.jsonl");
  log.write(RunRecord{});
  log.write(step_record(1));
  log.write(
      ValidationRecord{.step = 1, .tokens = 512, .val_loss = 2, .perplexity = std::exp(2), .val_tokens = 64, .ms = 3});
  log.write(SampleRecord{});
  log.write(CheckpointRecord{});
  EXPECT_EQ(lines_of(folder / "metrics.jsonl").size(), 5);
  log.write(EndRecord{});
  std::vector<std::string> kinds;
  for (const json& line : lines_of(folder / "metrics.jsonl")) kinds.push_back(line.at("kind"));
  EXPECT_EQ(kinds, (std::vector<std::string>{"run", "step", "validation", "sample", "checkpoint", "end"}));
}

TEST(MetricsLog, a_new_run_never_touches_the_log_of_another) {
  const TestFolder folder;
  put(folder / "metrics.jsonl", "precious\n");
  const std::string message = test::data_error([&] { MetricsLog log(folder / "metrics.jsonl"); });
  EXPECT_TRUE(test::contains(message, (folder / "metrics.jsonl").string()));
  EXPECT_TRUE(test::contains(message, "--resume"));
  EXPECT_EQ(get(folder / "metrics.jsonl"), "precious\n");
}

TEST(MetricsLog, resume_drops_later_steps_and_the_torn_line_and_goes_on) {
  const TestFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsLog log(path);
    log.write(RunRecord{});
    for (std::int64_t step = 1; step <= 5; ++step) log.write(step_record(step));
  }
  const std::string before = get(path);
  put(path, before + before.substr(0, 40));  // a copy of the run line, torn
  MetricsLog log(path, 3);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(get(path), before.substr(0, get(path).size()));  // byte for byte what was there
  log.write(step_record(4));
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(folder.names(), std::vector<std::string>{"metrics.jsonl"});
}

TEST(MetricsLog, resume_drops_the_torn_line_even_where_it_is_all_there_is) {
  const TestFolder folder;
  put(folder / "metrics.jsonl", R"({"kind":"run","st)");
  MetricsLog log(folder / "metrics.jsonl", 0);
  log.write(step_record(1));
  EXPECT_EQ(steps_of(folder / "metrics.jsonl"), std::vector<std::int64_t>{1});
}

TEST(MetricsLog, resume_keeps_what_it_does_not_know_and_ends_a_line_that_lacks_its_end) {
  const TestFolder folder;
  put(folder / "metrics.jsonl",
      "{\"kind\":\"note\",\"text\":\"x\"}\n\xff\xfe{garbage\n[1,2]\n\n{\"kind\":\"step\",\"step\":2}");
  const MetricsLog log(folder / "metrics.jsonl", 2);
  EXPECT_EQ(get(folder / "metrics.jsonl"), "{\"kind\":\"note\",\"text\":\"x\"}\n{\"kind\":\"step\",\"step\":2}\n");
}

TEST(MetricsLog, tells_the_last_validation_of_a_step) {
  const TestFolder folder;
  const auto path = folder / "metrics.jsonl";
  MetricsLog log(path);
  log.write(RunRecord{});
  log.write(ValidationRecord{5, 2560, 4.5, 90.0, 700, 1.0});
  log.write(ValidationRecord{5, 2560, 1.0 / 3.0, 1.4, 1400, 2.0});
  log.write(step_record(6));
  log.write(ValidationRecord{55, 28160, 2.5, 12.2, 700, 1.0});
  log.write(ValidationRecord{7, 3584, std::nan(""), std::nan(""), 700, 1.0});
  const auto found = find_validation(path, 5);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(to_json_line(*found), to_json_line(ValidationRecord{5, 2560, 1.0 / 3.0, 1.4, 1400, 2.0}));
  EXPECT_FALSE(find_validation(path, 6).has_value());
  EXPECT_FALSE(find_validation(path, 7).has_value());
}

TEST(MetricsLog, resume_leaves_a_sound_file_as_it_is) {
  const TestFolder folder;
  const auto path = folder / "metrics.jsonl";
  MetricsLog(path).write(step_record(1));
  struct stat before {};
  struct stat after {};
  ASSERT_EQ(::stat(path.c_str(), &before), 0);
  const MetricsLog log(path, 1);
  ASSERT_EQ(::stat(path.c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  EXPECT_EQ(steps_of(path), std::vector<std::int64_t>{1});
}

TEST(MetricsLog, resume_begins_a_file_that_is_gone) {
  const TestFolder folder;
  MetricsLog log(folder / "metrics.jsonl", 7);
  log.write(step_record(8));
  EXPECT_EQ(steps_of(folder / "metrics.jsonl"), std::vector<std::int64_t>{8});
}

TEST(MetricsLog, a_path_that_cannot_be_written_is_named) {
  const TestFolder folder;
  const auto missing = folder / "no" / "metrics.jsonl";
  EXPECT_TRUE(test::contains(test::data_error([&] { MetricsLog log(missing); }), missing.string()));
  EXPECT_TRUE(test::contains(test::data_error([&] { MetricsLog log(missing, 3); }), missing.string()));
  EXPECT_TRUE(test::contains(test::data_error([&] { MetricsLog log(folder.path(), 3); }), folder.path().string()));
}

// A limit on the file's size stands in for a full disk: both cut a write short and fail the next.
TEST(MetricsLog, a_full_disk_is_an_error_that_names_the_file_and_leaves_whole_lines) {
  const TestFolder folder;
  const auto path = folder / "metrics.jsonl";
  const std::size_t two_lines = to_json_line(step_record(1)).size() + to_json_line(step_record(2)).size() + 2;
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit { two_lines + 50, RLIM_INFINITY };
    ::setrlimit(RLIMIT_FSIZE, &limit);
    MetricsLog log(path);
    log.write(step_record(1));
    log.write(step_record(2));
    try {
      log.write(step_record(3));
    } catch (const Error& error) {
      const bool named = std::string(error.what()).find(path.string()) != std::string::npos;
      ::_exit(error.code() == Exit::data && named ? 7 : 1);
    }
    ::_exit(2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(get(path).size(), two_lines);
  EXPECT_EQ(steps_of(path), (std::vector<std::int64_t>{1, 2}));
}

}  // namespace
}  // namespace polaron

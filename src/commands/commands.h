// The program's commands, each with its arguments as a struct. command_line.cpp fills them; a file each carries them
// out.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace polaron {

struct TrainCommand {
  std::string config;
  std::vector<std::string> overrides;  // "key.path=value"
  bool resume = false;
  std::string resume_from;   // empty: the config's own output directory
  bool auto_resume = false;  // resume where there is something to resume from
  std::string max_time;      // a duration; empty: none
};

struct EvalCommand {
  std::string checkpoint;
  std::optional<std::string> data;     // none: the run's data.validation,
  std::optional<std::int64_t> tokens;  // and as many as its validation.tokens; 0: all, also where data alone is given
  std::int64_t sequence_length = 0;    // 0: what the model was trained with
  std::int64_t micro_batch = 8;
  std::string device = "auto";
  int threads = 0;
  bool json = false;
};

struct GenerateCommand {
  std::string checkpoint;
  std::string prompt;
  std::vector<std::int32_t> prompt_ids;
  std::int64_t tokens = 128;
  double temperature = 0.8;
  std::int64_t top_k = 40;
  std::uint64_t seed = 0;
  std::string device = "auto";
  int threads = 0;
};

struct PlanCommand {
  std::string config;
  std::vector<std::string> overrides;
  int processes = 1;
  std::string json;  // file for the numbers; empty: none
};

struct BenchCommand {
  std::string config;  // optimizer, step: whose model
  std::vector<std::string> overrides;
  std::int64_t repeats = 5;
  std::string json;          // file for the results; empty: none
  std::int64_t size = 1024;  // orthogonalize: rows
  std::int64_t columns = 0;  // orthogonalize: columns; 0: square
  // regression
  std::int64_t unknown_rows = 48, unknown_columns = 64;
  std::int64_t steps = 500;
  double noise = 1.0;                                // of the first gradient's root mean square
  std::vector<double> tolerances = {0.5, 0.3, 0.2};  // of the first gradient's nuclear norm
  std::string device = "auto";
  int threads = 0;
};

struct ConfigCommand {
  std::string config;  // prints its effective form; or
  std::vector<std::string> overrides;
  bool markdown = false;  // the reference
  bool schema = false;
};

Exit run_train(const TrainCommand& command);
Exit run_eval(const EvalCommand& command);
Exit run_generate(const GenerateCommand& command);
Exit run_plan(const PlanCommand& command);
Exit run_bench_orthogonalize(const BenchCommand& command);
Exit run_bench_regression(const BenchCommand& command);
Exit run_bench_optimizer(const BenchCommand& command);
Exit run_bench_step(const BenchCommand& command);
Exit run_config(const ConfigCommand& command);

// What a person is told of an exception, and the exit code.
struct Failure {
  std::string message;
  Exit code;
};
Failure describe_failure(const std::exception_ptr& failure);

// Parses the command line, runs the command, prints errors, returns the exit code.
int run_command_line(int argc, const char* const* argv);

}  // namespace polaron

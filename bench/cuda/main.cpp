// bench_kernels: the time of every op of the op table on a device, against its arithmetic and its traffic.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "floors.h"
#include "io/atomic.h"
#include "timing.h"
#include "train/backend_factory.h"

namespace polaron::bench {
namespace {

struct Options {
  std::vector<std::string> models{"gpt2-124m", "llama-350m"};
  std::string device = "cuda";
  std::string json;
  std::string only;
  Effort effort;
  int threads = 0;
  bool least = false;
  bool fp32 = false;
  bool floors = false;
};

Options parse(int argc, char** argv, CLI::App& app) {
  Options options;
  app.add_option("--models", options.models, "gpt2-124m, llama-350m, tiny-gpt2, tiny-llama")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--device", options.device, "auto, cuda or cpu")->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads; 0: one a core")->capture_default_str();
  app.add_option("--repeats", options.effort.repeats, "Measurements; the median counts")->capture_default_str();
  app.add_option("--seconds", options.effort.seconds, "Of one measurement, at least")->capture_default_str();
  app.add_option("--only", options.only, "Only ops whose name contains this");
  app.add_option("--json", options.json, "Also write the results to this file, case by case")->type_name("FILE");
  app.add_flag("--least", options.least, "One call of everything: tries the program out");
  app.add_flag("--fp32", options.fp32, "fp32 instead of bf16");
  app.add_flag("--floors", options.floors, "Print arithmetic and traffic as markdown, measure nothing, need no device");
  app.parse(argc, argv);
  if (options.least) options.effort = least_effort();
  return options;
}

std::vector<ModelShape> chosen_models(const Options& options) {
  std::vector<ModelShape> models;
  for (const std::string& name : options.models) {
    models.push_back(model_shape(name));
    if (options.fp32) models.back().dtype = DType::f32;
  }
  return models;
}

int measure(const Options& options) {
  const ChosenBackend chosen = make_backend(options.device, options.threads);
  Backend& backend = *chosen.backend;
  const auto stream = backend.device().make_stream();
  const Limits limits = measure_limits(backend, *stream, options.fp32 ? DType::f32 : DType::bf16, options.effort);
  backend.set_tf32(!options.fp32);
  const double largest = limits.rate(options.fp32 ? Operands::fp32 : Operands::bf16);
  fmt::print("{}; largest product {:.1f} TFLOP/s, of TF32 {:.1f}, of fp32 {:.1f}; copy {:.1f} GB/s\n", chosen.why,
             largest * 1e-12, limits.rate(Operands::tf32) * 1e-12, limits.rate(Operands::fp32) * 1e-12,
             limits.copy_bytes_per_s * 1e-9);
  nlohmann::ordered_json result = {{"device", chosen.why},
                                   {"dtype", options.fp32 ? "fp32" : "bf16"},
                                   {"gemm_flops", largest},
                                   {"gemm_flops_tf32", limits.rate(Operands::tf32)},
                                   {"gemm_flops_fp32", limits.rate(Operands::fp32)},
                                   {"copy_bytes_per_s", limits.copy_bytes_per_s},
                                   {"cases", nlohmann::ordered_json::array()}};
  bool failed = false;
  for (const ModelShape& model : chosen_models(options)) {
    for (const Case& one : all_cases(model)) {
      if (one.op.find(options.only) == std::string::npos) continue;
      nlohmann::ordered_json row = {{"model", model.name},
                                    {"op", one.op},
                                    {"shape", one.shape},
                                    {"flops", one.flops},
                                    {"operands", name_of(one.operands)},
                                    {"bytes", one.bytes},
                                    {"floor_ms", floor_ms(one, limits)}};
      try {
        const double ms = time_case(backend, *stream, one, options.effort);
        row["ms"] = ms;
        row["share"] = floor_ms(one, limits) / ms;
        fmt::print("{:12} {:50} {:34} {:10.4f} ms {:5.1f} % of the limit\n", model.name, one.op, one.shape, ms,
                   100 * floor_ms(one, limits) / ms);
      } catch (const std::exception& error) {  // one that does not fit must not hide the others
        failed = true;
        row["error"] = error.what();
        fmt::print("{:12} {:50} {}\n", model.name, one.op, error.what());
      }
      std::fflush(stdout);
      result["cases"].push_back(std::move(row));
      if (!options.json.empty()) write_file_atomically(options.json, result.dump(2) + "\n");
    }
  }
  return failed ? static_cast<int>(Exit::device) : 0;
}

}  // namespace
}  // namespace polaron::bench

int main(int argc, char** argv) {
  CLI::App app("Times every op of a training step against its arithmetic and its traffic", "bench_kernels");
  try {
    const polaron::bench::Options options = polaron::bench::parse(argc, argv, app);
    if (!options.floors) return polaron::bench::measure(options);
    fmt::print("{}", polaron::bench::floors_markdown(polaron::bench::chosen_models(options), polaron::bench::kH200));
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(polaron::Exit::usage);
  } catch (const polaron::Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_kernels: {}\n", error.what());
    return 1;
  }
}

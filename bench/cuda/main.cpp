// bench_kernels: the time of every op of the op table on a device, against its arithmetic and its traffic.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>

#include "base/error.h"
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
  double tflops = 989.4;
  double terabytes = 4.8;
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
  app.add_option("--tflops", options.tflops, "GEMM rate that --floors counts with, TFLOP/s")->capture_default_str();
  app.add_option("--terabytes", options.terabytes, "Memory rate that --floors counts with, TB/s")
      ->capture_default_str();
  app.parse(argc, argv);
  if (options.least) options.effort = least_effort();
  return options;
}

std::vector<std::pair<ModelShape, std::vector<Case>>> chosen_cases(const Options& options) {
  std::vector<std::pair<ModelShape, std::vector<Case>>> all;
  for (const std::string& name : options.models) {
    ModelShape model = model_shape(name);
    if (options.fp32) model.dtype = DType::f32;
    std::vector<Case> cases = all_cases(model);
    std::erase_if(cases, [&](const Case& one) { return one.op.find(options.only) == std::string::npos; });
    all.emplace_back(model, std::move(cases));
  }
  return all;
}

int print_floors(const Options& options) {
  const Limits limits{options.tflops * 1e12, options.terabytes * 1e12};
  fmt::print("# The floor of every op\n\n");
  fmt::print(
      "What each op needs at least: the floating-point operations of its matrix products, and every input read once "
      "and "
      "every\noutput written once. `floor` is the larger of the two times at {:g} TFLOP/s and {:g} TB/s (an H200's "
      "datasheet); `bench_kernels`\nmeasures against the rates that it finds on the device instead. One micro-batch, "
      "{} "
      "activations; optimizer ops over all matrices of a\nshape. These are counts, not measurements.\n\nWritten by "
      "`bench_kernels --floors > docs/benchmarks/gpu-floors.md` (built with `-DPOLARON_BENCHMARKS=ON`), from the list "
      "that the\nprogram measures.\n",
      options.tflops, options.terabytes, options.fp32 ? "fp32" : "bf16");
  for (const auto& [model, cases] : chosen_cases(options)) {
    fmt::print("\n## {}: {} x {} tokens\n\n", model.name, model.batch, model.sequence_length);
    fmt::print("| op | shape | GFLOP | MB | FLOP/B | bound by | floor, us |\n|---|---|---:|---:|---:|---|---:|\n");
    for (const Case& one : cases) {
      const bool arithmetic = one.flops / limits.gemm_flops > one.bytes / limits.copy_bytes_per_s;
      fmt::print("| {} | {} | {:.2f} | {:.1f} | {:.0f} | {} | {:.1f} |\n", one.op, one.shape, one.flops * 1e-9,
                 one.bytes * 1e-6, one.flops / one.bytes, arithmetic ? "arithmetic" : "memory",
                 1e3 * floor_ms(one, limits));
    }
  }
  return 0;
}

int measure(const Options& options) {
  const ChosenBackend chosen = make_backend(options.device, options.threads);
  Backend& backend = *chosen.backend;
  const auto stream = backend.device().make_stream();
  const Limits limits = measure_limits(backend, *stream, options.fp32 ? DType::f32 : DType::bf16, options.effort);
  fmt::print("{}; largest product {:.1f} TFLOP/s, copy {:.1f} GB/s\n", chosen.why, limits.gemm_flops * 1e-12,
             limits.copy_bytes_per_s * 1e-9);
  nlohmann::ordered_json result = {{"device", chosen.why},
                                   {"dtype", options.fp32 ? "fp32" : "bf16"},
                                   {"gemm_flops", limits.gemm_flops},
                                   {"copy_bytes_per_s", limits.copy_bytes_per_s},
                                   {"cases", nlohmann::ordered_json::array()}};
  bool failed = false;
  for (const auto& [model, cases] : chosen_cases(options)) {
    for (const Case& one : cases) {
      nlohmann::ordered_json row = {{"model", model.name}, {"op", one.op},       {"shape", one.shape},
                                    {"flops", one.flops},  {"bytes", one.bytes}, {"floor_ms", floor_ms(one, limits)}};
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
    return options.floors ? polaron::bench::print_floors(options) : polaron::bench::measure(options);
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

// `polaron bench step`: a whole training step on random tokens, then once more op by op.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "commands/bench_model.h"
#include "io/atomic.h"
#include "model/transformer.h"
#include "optim/optimizer.h"
#include "train/console.h"
#include "train/device_batch.h"
#include "train/gemm_rate.h"
#include "train/profile.h"

namespace polaron {

Config load_bench_config(const BenchCommand& command) {
  Config config = load_config(command.config, command.overrides);
  if (config.model.vocabulary == 0) config.model.vocabulary = 256;
  return config;
}

void write_results(const BenchCommand& command, const std::string& text) {
  if (!command.json.empty()) write_file_atomically(command.json, text);
}

namespace {

// Model and optimizer on a backend, stepping over micro-batches of random tokens.
class Stepper {
 public:
  Stepper(BenchModel& bench, Backend& backend)
      : bench_(bench),
        backend_(backend),
        shape_(activation_shape(bench.config)),
        transformer_(bench.config.model, bench.table, shape_, backend, bench.buffers()),
        optimizer_(assign_optimizers(bench.config.optimizer, bench.config.model, bench.table, bench.dtype()),
                   bench.table, backend, *bench.communicator, Exchange::parameters, 1, bench.buffers()),
        uploader_(backend.device(), bench.config.model, shape_.rows()),
        scalars_(backend.device(), 256) {}

  void step(std::int64_t number) {
    Stream& stream = *bench_.stream;
    const std::int64_t micro_batches = bench_.config.training.batch / bench_.config.training.micro_batch;
    auto* const sums = scalars_.as<double>();
    auto* const norm = reinterpret_cast<float*>(sums + 2);
    auto* const apply = reinterpret_cast<std::int32_t*>(norm + 2);
    backend_.device().zero(stream, scalars_.data(), scalars_.bytes());
    const float scale = 1.0F / static_cast<float>(micro_batches * shape_.rows());
    for (std::int64_t i = 0; i < micro_batches; ++i) {
      const DeviceBatch batch =
          uploader_.upload(stream, random_batch(static_cast<std::uint64_t>(number * micro_batches + i)));
      transformer_.forward_backward(stream, batch, scale, i > 0, sums, [](int) {});
    }
    const std::span<const float> gradients(bench_.gradients.as<float>(),
                                           static_cast<std::size_t>(bench_.table.stored_elements()));
    backend_.elementwise().sum_of_squares(stream, std::span(&gradients, 1), sums + 1);
    backend_.elementwise().decide(stream, sums + 1, sums, scale, 1.0F, 1e30, norm, norm + 1, apply);
    optimizer_.step(stream, number, 1.0, {norm + 1, apply});
    stream.synchronize();
  }

 private:
  Batch random_batch(std::uint64_t number) const {
    Batch batch;
    batch.sequences = shape_.sequences;
    batch.length = shape_.sequence_length;
    const PhiloxKey key = make_key(1, RandomPurpose::test, number, 3);
    const auto vocabulary = static_cast<std::uint32_t>(bench_.config.model.vocabulary);
    for (std::int64_t i = 0; i < shape_.rows(); ++i) {
      const Philox4 block = philox(key, static_cast<std::uint64_t>(i));
      batch.tokens.push_back(static_cast<std::int32_t>(block.word[0] % vocabulary));
      batch.targets.push_back(static_cast<std::int32_t>(block.word[1] % vocabulary));
    }
    batch.target_count = shape_.rows();
    return batch;
  }

  BenchModel& bench_;
  Backend& backend_;
  ActivationShape shape_;
  Transformer transformer_;
  Optimizer optimizer_;
  BatchUploader uploader_;
  DeviceBuffer scalars_;
};

// Rate of reading and writing a large buffer in place, bytes of both counted: the limit of a memory-bound op.
double measure_memory_rate(Backend& backend) {
  constexpr std::int64_t kElements = 64 << 20;
  const auto stream = backend.device().make_stream();
  const DeviceBuffer a(backend.device(), kElements * sizeof(float));
  const DeviceBuffer b(backend.device(), kElements * sizeof(float));
  const double ms = median_ms(3, [&](std::int64_t) {
    backend.device().copy(*stream, b.data(), a.data(), a.bytes());
    stream->synchronize();
  });
  return 2.0 * static_cast<double>(a.bytes()) / (ms * 1e-3);
}

}  // namespace

Exit run_bench_step(const BenchCommand& command) {
  const Config config = load_bench_config(command);
  if (config.training.micro_batch == kAutoMicroBatch) {
    throw Error(Exit::usage,
                "this benchmark needs a number as training.micro_batch, not \"auto\": --set training.micro_batch=N.");
  }
  BenchModel bench(config);
  const double gemm_rate = measure_gemm_rate(bench.backend, bench.dtype());
  const double memory_rate = measure_memory_rate(bench.backend);
  double ms = 0;
  {
    Stepper stepper(bench, bench.backend);
    ms = median_ms(command.repeats, [&](std::int64_t i) { stepper.step(i); });
  }
  Profile profile;
  const auto profiling = make_profiling_backend(bench.backend, profile);
  Stepper profiled(bench, *profiling);
  profiled.step(0);
  profile.clear();
  profiled.step(1);

  const TrainingConfig& t = bench.config.training;
  const double tokens = static_cast<double>(t.batch * t.sequence_length);
  const FlopsPerToken flops = flops_per_token(bench.config.model, bench.table, t.sequence_length);
  const double rate = flops.total() * tokens / (ms * 1e-3);
  Console console;
  console.line(fmt::format("{}, {}   {} x {} tokens, micro-batch {}", bench.chosen.why, bench.config.precision, t.batch,
                           t.sequence_length, t.micro_batch));
  console.line(fmt::format(
      "step {:.1f} ms (median of {}), {:.1f} tok/s, {} = {:.1f} % of the measured GEMM peak {}; copy {:.1f} GB/s", ms,
      command.repeats, tokens / (ms * 1e-3), format_flops(rate), 100 * rate / gemm_rate, format_flops(gemm_rate),
      memory_rate * 1e-9));
  Table table;
  table.title = "one step, op by op (limit: the larger of FLOPs at the GEMM peak and bytes at the copy rate)";
  table.headers = {"op", "calls", "ms", "share %", "GFLOP", "GB", "GFLOP/s", "GB/s", "limit ms", "of limit %"};
  std::vector<std::pair<std::string, OpProfile>> ops(profile.begin(), profile.end());
  std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double all = 0;
  for (const auto& [name, op] : ops) all += op.seconds;
  nlohmann::json rows = nlohmann::json::array();
  double limits = 0;
  for (const auto& [name, op] : ops) {
    const double limit = std::max(op.flops / gemm_rate, op.bytes / memory_rate);
    limits += limit;
    table.rows.push_back({name, fmt::format("{}", op.calls), fmt::format("{:.1f}", op.seconds * 1e3),
                          fmt::format("{:.1f}", 100 * op.seconds / all), fmt::format("{:.1f}", op.flops * 1e-9),
                          fmt::format("{:.2f}", op.bytes * 1e-9), fmt::format("{:.0f}", op.flops / op.seconds * 1e-9),
                          fmt::format("{:.1f}", op.bytes / op.seconds * 1e-9), fmt::format("{:.1f}", limit * 1e3),
                          fmt::format("{:.0f}", 100 * limit / op.seconds)});
    rows.push_back({{"op", name},
                    {"calls", op.calls},
                    {"ms", op.seconds * 1e3},
                    {"gflop", op.flops * 1e-9},
                    {"gb", op.bytes * 1e-9}});
  }
  table.rows.push_back({});
  table.rows.push_back({"in all", "", fmt::format("{:.1f}", all * 1e3), "", "", "", "", "",
                        fmt::format("{:.1f}", limits * 1e3), fmt::format("{:.0f}", 100 * limits / all)});
  console.table(table);
  const nlohmann::json result = {{"config", bench.config.name},
                                 {"precision", bench.config.precision},
                                 {"batch", t.batch},
                                 {"sequence_length", t.sequence_length},
                                 {"ms", ms},
                                 {"tokens_per_s", tokens / (ms * 1e-3)},
                                 {"gemm_flops", gemm_rate},
                                 {"copy_bytes_per_s", memory_rate},
                                 {"ops", rows}};
  write_results(command, result.dump(2) + "\n");
  return Exit::done;
}

}  // namespace polaron

// What the benchmarks share: timing, and a model with random weights and gradients that needs no data.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/philox.h"
#include "comm/communicator.h"
#include "commands/commands.h"
#include "config/config.h"
#include "optim/optimizer.h"
#include "train/backend_factory.h"
#include "train/plan.h"

namespace polaron {

// Median wall time in milliseconds of `repeats` calls, after one that does not count. `work` waits for its device.
template <class Work>
double median_ms(std::int64_t repeats, Work work) {
  std::vector<double> times;
  for (std::int64_t i = 0; i <= repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work(i);
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Uniform numbers in [-scale, scale) into device memory.
inline void fill_random(Device& device, Stream& stream, float* to, std::int64_t n, float scale, std::uint32_t tensor) {
  std::vector<float> host(static_cast<std::size_t>(n));
  const PhiloxKey key = make_key(1, RandomPurpose::test, 0, tensor);
  for (std::int64_t i = 0; i < n; i += 4) {
    const Philox4 block = philox(key, static_cast<std::uint64_t>(i));
    for (std::int64_t j = i; j < std::min(i + 4, n); ++j) {
      host[static_cast<std::size_t>(j)] = (static_cast<float>(block.word[j - i] >> 8U) * 0x1p-23F - 1.0F) * scale;
    }
  }
  device.upload(stream, to, host.data(), host.size() * sizeof(float));
  stream.synchronize();
}

// A config's model on its device.
struct BenchModel {
  explicit BenchModel(const Config& given)
      : chosen(make_backend(given.device, static_cast<int>(given.threads))),
        backend(*chosen.backend),
        config(settled(given, backend)),
        table(config.model),
        stream(backend.device().make_stream()),
        communicator(make_single_process_communicator()),
        weights(backend.device(), bytes()),
        gradients(backend.device(), bytes()),
        working(backend.device(), computed_in_bf16(config) ? bytes() / 2 : 0) {
    fill_random(backend.device(), *stream, weights.as<float>(), table.stored_elements(), 0.03F, 1);
    fill_random(backend.device(), *stream, gradients.as<float>(), table.stored_elements(), 0.001F, 2);
    if (working.bytes() > 0) {
      backend.elementwise().round(*stream, weights.as<float>(), working.as<bf16>(), table.stored_elements());
    }
  }
  FlatBuffers buffers() const { return {weights.as<float>(), gradients.as<float>(), working.as<bf16>()}; }
  DType dtype() const { return compute_type(config); }
  static Config settled(Config config, Backend& backend) {
    settle_precision(config, backend);
    return config;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(table.stored_elements()) * sizeof(float); }

  ChosenBackend chosen;
  Backend& backend;
  Config config;
  ParameterTable table;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Communicator> communicator;
  DeviceBuffer weights;
  DeviceBuffer gradients;
  DeviceBuffer working;  // bf16 copy of the weights where the config asks for it
};

// The config of a benchmark, with a vocabulary of 256 where it takes its own from data that the benchmark does not
// read.
Config load_bench_config(const BenchCommand& command);

// Writes `text` to the file that --json names, if any.
void write_results(const BenchCommand& command, const std::string& text);

}  // namespace polaron

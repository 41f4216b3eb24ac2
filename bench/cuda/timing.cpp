#include "timing.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <vector>

namespace polaron::bench {
namespace {

constexpr std::size_t kMostSets = 8;

// Milliseconds of one of many calls of `call(i)`.
template <class QueuedCall>
double median_ms(Stream& stream, const Effort& effort, QueuedCall call) {
  const auto time = [&](std::int64_t calls) {
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < calls; ++i) call(i);
    stream.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  if (effort.seconds <= 0) return 1e3 * time(1);
  time(1);  // chooses algorithms, loads code
  const double once = std::max(time(2) / 2, 1e-7);
  const auto calls = static_cast<std::int64_t>(std::clamp(effort.seconds / once, 1.0, 5000.0));
  std::vector<double> times;
  for (int i = 0; i < effort.repeats; ++i) times.push_back(1e3 * time(calls) / static_cast<double>(calls));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

Effort least_effort() { return {1, 0.0, 0, 64, 1UL << 20U}; }

namespace {

double gemm_rate(Backend& backend, Stream& stream, DType dtype, const Effort& effort) {
  double rate = 0;
  for (std::int64_t n = std::min<std::int64_t>(effort.largest_product, 2048); n <= effort.largest_product; n *= 2) {
    Memory memory(backend, stream);
    const Tensor a = memory.random(dtype, n, n), b = memory.random(dtype, n, n), c = memory.zeros(dtype, n, n);
    const double ms = median_ms(
        stream, effort, [&](std::int64_t) { backend.linear().forward(stream, a, b, {}, Activation::none, c, {}); });
    const auto size = static_cast<double>(n);
    rate = std::max(rate, 2 * size * size * size / (ms * 1e-3));
  }
  return rate;
}

}  // namespace

Limits measure_limits(Backend& backend, Stream& stream, DType dtype, const Effort& effort) {
  Limits limits;
  const auto measure = [&](Operands operands) {
    const DType type = operands == Operands::bf16 ? DType::bf16 : DType::f32;
    backend.set_tf32(operands == Operands::tf32);
    limits.gemm_flops[static_cast<std::size_t>(operands)] = gemm_rate(backend, stream, type, effort);
  };
  if (dtype == DType::bf16) {
    measure(Operands::bf16);
    measure(Operands::tf32);
  }
  measure(Operands::fp32);
  Memory memory(backend, stream);
  const auto floats = static_cast<std::int64_t>(effort.copied_bytes / sizeof(float));
  float* const from = memory.floats(floats);
  float* const to = memory.zeros(DType::f32, 1, floats).f32();
  const double ms =
      median_ms(stream, effort, [&](std::int64_t) { backend.device().copy(stream, to, from, effort.copied_bytes); });
  limits.copy_bytes_per_s = 2.0 * static_cast<double>(effort.copied_bytes) / (ms * 1e-3);
  return limits;
}

double floor_ms(const Case& one, const Limits& limits) {
  return 1e3 * std::max(one.flops / limits.rate(one.operands), one.bytes / limits.copy_bytes_per_s);
}

double time_case(Backend& backend, Stream& stream, const Case& one, const Effort& effort) {
  std::deque<Memory> sets;  // where they are must not change: calls may refer to them
  std::vector<Call> calls;
  std::size_t bytes = 0;
  do {
    sets.emplace_back(backend, stream);
    calls.push_back(one.prepare(sets.back()));
    calls.back()(backend, stream);
    bytes += sets.back().bytes();
  } while (bytes < effort.rotated_bytes && calls.size() < kMostSets);
  stream.synchronize();
  return median_ms(stream, effort,
                   [&](std::int64_t i) { calls[static_cast<std::size_t>(i) % calls.size()](backend, stream); });
}

}  // namespace polaron::bench

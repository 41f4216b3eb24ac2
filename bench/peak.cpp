#include "peak.h"

#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "cpu/amx_registers.h"
#include "cpu/host.h"
#include "cpu/simd.h"

namespace polaron::bench {
namespace {

using Clock = std::chrono::steady_clock;

// run(): does `flops` floating-point operations on one thread. Threads start together; the slowest one counts.
template <class Run>
double best_rate(double flops, Run&& run) {
  double best = 0.0;
  for (int measurement = 0; measurement < 8; ++measurement) {
    double slowest = 0.0;
    int threads = 1;
    std::int64_t rounds = 0;
#pragma omp parallel reduction(max : slowest, threads, rounds)
    {
      threads = omp_get_num_threads();
#pragma omp barrier
      const auto start = Clock::now();
      // As many rounds on each thread, so that what one thread waits for is work and not a clock.
      rounds = 400;
      for (std::int64_t i = 0; i < rounds; ++i) run();
      slowest = std::chrono::duration<double>(Clock::now() - start).count();
    }
    best = std::max(best, flops * static_cast<double>(rounds) * threads / slowest * 1e-9);
  }
  return best;
}

constexpr int kSums = 14;  // chains of dependent operations: more than latency times throughput
constexpr int kSteps = 16384;

void multiply_add() {
  static volatile float factor_source = 0.5F;
  const cpu::Vec factor = cpu::broadcast(factor_source), one = cpu::broadcast(1.0F);
  cpu::Vec sums[kSums] = {};
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
    for (cpu::Vec& sum : sums) sum = sum * factor + one;
  }
  cpu::Vec total = {};
  for (const cpu::Vec& sum : sums) total += sum;
  benchmark::DoNotOptimize(total[0]);
}

#if defined(__x86_64__)
void multiply_tiles_only() {
  using Tiles = cpu::AmxTiles;
  Tiles::configure(cpu::kFullTiles);
  Tiles::zero<4>();
  Tiles::zero<5>();
  Tiles::zero<6>();
  Tiles::zero<7>();
  for (int step = 0; step < kSteps / 16; ++step) {
    Tiles::dot_bf16<0, 4, 6>();
    Tiles::dot_bf16<1, 4, 7>();
    Tiles::dot_bf16<2, 5, 6>();
    Tiles::dot_bf16<3, 5, 7>();
  }
  Tiles::release();
}
#endif

}  // namespace

double fma_peak() { return best_rate(2.0 * cpu::kLanes * kSums * kSteps, multiply_add); }

double amx_bf16_peak() {
#if defined(__x86_64__)
  if (cpu::amx_bf16().available) return best_rate(4.0 * 2.0 * 16 * 16 * 32 * (kSteps / 16), multiply_tiles_only);
#endif
  return 0.0;
}

}  // namespace polaron::bench

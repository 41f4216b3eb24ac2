// Matrix products of training steps: our fp32 tiles, OpenBLAS and our bf16 engine, in GFLOP/s and as a share of what
// registers alone could do, measured in the same run.
//   bench_gemm [--second_level=KB] [Google Benchmark's options]
// The size is that of the second-level cache that bf16 products are cut for (default: this machine's).
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/blas.h"
#include "cpu/gemm.h"
#include "cpu/host.h"
#include "peak.h"

namespace polaron::bench {
namespace {

using cpu::CacheSizes;
using cpu::Gemm;
using cpu::GemmEngine;

struct Sizes {
  std::int64_t m, n, k;
};
const Sizes kSizes[] = {{4096, 768, 768}, {4096, 2304, 768}, {4096, 3072, 768}, {4096, 768, 3072},  {2048, 2048, 2048},
                        {1024, 256, 256}, {1024, 1024, 256}, {256, 2304, 768},  {1024, 50304, 256}, {1024, 50304, 768}};

// forward x W^T, input gradient dY W, weight gradient dY^T X.
enum class Layout { nt, nn, tn };
const char* name_of(Layout layout) { return layout == Layout::nt ? "NT" : layout == Layout::nn ? "NN" : "TN"; }

enum class Kernel { tiles, openblas, bf16 };

struct Peaks {
  double fma, bf16;
};

// Small whole numbers: products neither vanish nor overflow.
void put(float& to, std::int64_t i) { to = static_cast<float>(i % 7 - 3); }
void put(bf16& to, std::int64_t i) { to = to_bf16(static_cast<float>(i % 7 - 3)); }

// Touched first by the threads that will use it, more or less.
template <class T>
std::unique_ptr<T[]> numbers(std::int64_t count) {
  std::unique_ptr<T[]> values(new T[static_cast<std::size_t>(count)]);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) put(values[i], i);
  return values;
}

template <class Args>
Args arguments(const Sizes& s, Layout layout) {
  Args args;
  args.m = s.m;
  args.n = s.n;
  args.k = s.k;
  args.a_transposed = layout == Layout::tn;
  args.b_transposed = layout == Layout::nt;
  args.lda = args.a_transposed ? s.m : s.k;
  args.ldb = args.b_transposed ? s.k : s.n;
  args.ldc = s.n;
  return args;
}

template <class Run>
void measure(benchmark::State& state, const Sizes& s, double peak, Run&& run) {
  using Clock = std::chrono::steady_clock;
  run();  // scratch memory is allocated, threads are started
  double total = 0.0, best = std::numeric_limits<double>::infinity();
  for (auto _ : state) {
    const auto start = Clock::now();
    run();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    total += seconds;
    best = std::min(best, seconds);
  }
  const double flops = 2e-9 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
  state.counters["GFLOP/s"] = flops * static_cast<double>(state.iterations()) / total;
  state.counters["best"] = flops / best;
  state.counters["best_of_peak"] = flops / best / peak;
}

void product(benchmark::State& state, const Sizes& s, Layout layout, Kernel kernel, const Peaks& peaks,
             const CacheSizes& caches) {
  if (kernel == Kernel::bf16) {
    const auto a = numbers<bf16>(s.m * s.k), b = numbers<bf16>(s.n * s.k);
    auto args = arguments<cpu::Bf16GemmArgs>(s, layout);
    args.a = a.get();
    args.b = b.get();
    // Weight gradients are fp32, activations and their gradients bf16.
    const auto c = numbers<float>(layout == Layout::tn ? s.m * s.n : 0);
    const auto c_bf16 = numbers<bf16>(layout == Layout::tn ? 0 : s.m * s.n);
    if (layout == Layout::tn) {
      args.c = c.get();
    } else {
      args.c_bf16 = c_bf16.get();
    }
    Gemm gemm(cpu::default_gemm_engine(), cpu::default_block_unit(), caches);
    return measure(state, s, peaks.bf16, [&] { gemm(args); });
  }
  const auto a = numbers<float>(s.m * s.k), b = numbers<float>(s.n * s.k), c = numbers<float>(s.m * s.n);
  auto args = arguments<cpu::GemmArgs>(s, layout);
  args.a = a.get();
  args.b = b.get();
  args.c = c.get();
  if (kernel == Kernel::openblas) {
    return measure(state, s, peaks.fma, [&] {
      cpu::sgemm(args.a_transposed, args.b_transposed, args.m, args.n, args.k, args.a, args.lda, args.b, args.ldb, 0.0F,
                 args.c, args.ldc);
    });
  }
  Gemm gemm(GemmEngine::tiles);
  measure(state, s, peaks.fma, [&] { gemm(args); });
}

// Takes "--name=KB" out of the arguments.
std::int64_t take_option(int& argc, char** argv, const std::string& name, std::int64_t otherwise) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], prefix.c_str(), prefix.size()) != 0) continue;
    const long kilobytes = std::strtol(argv[i] + prefix.size(), nullptr, 10);
    if (kilobytes <= 0) throw std::runtime_error("--" + name + " is a size in KB");
    for (int j = i; j + 1 < argc; ++j) argv[j] = argv[j + 1];
    --argc;
    return kilobytes << 10U;
  }
  return otherwise;
}

int run(int argc, char** argv) {
  CacheSizes caches = CacheSizes::of_this_machine();
  caches.second_level = take_option(argc, argv, "second_level", caches.second_level);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;

  cpu::select_blas_kernels();
  const double fma = fma_peak(), amx = amx_bf16_peak();
  const Peaks peaks{fma, amx > 0.0 ? amx : fma};
  const std::string unit = cpu::default_block_unit().name();
  std::printf("%d threads; registers alone: fp32 %.0f GFLOP/s", omp_get_max_threads(), fma);
  if (amx > 0.0) {
    std::printf(", AMX bf16 %.0f GFLOP/s\n", amx);
  } else {
    std::printf("; no AMX: %s\n", cpu::amx_bf16().reason.c_str());
  }
  std::printf("bf16 by %s, cut for %ld KB\n", unit.c_str(), static_cast<long>(caches.second_level >> 10U));

  for (const Sizes& s : kSizes) {
    for (const Layout layout : {Layout::nt, Layout::nn, Layout::tn}) {
      for (const Kernel kernel : {Kernel::tiles, Kernel::openblas, Kernel::bf16}) {
        const std::string kernel_name = kernel == Kernel::tiles      ? "fp32 tiles"
                                        : kernel == Kernel::openblas ? "fp32 OpenBLAS"
                                                                     : "bf16 " + unit;
        const std::string name = std::string(name_of(layout)) + " " + std::to_string(s.m) + "x" + std::to_string(s.n) +
                                 "x" + std::to_string(s.k) + " " + kernel_name;
        benchmark::RegisterBenchmark(name.c_str(), product, s, layout, kernel, peaks, caches)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace polaron::bench

int main(int argc, char** argv) {
  try {
    return polaron::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_gemm: %s\n", error.what());
    return 2;
  }
}

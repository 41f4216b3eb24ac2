#include <algorithm>
#include <array>
#include <cmath>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

// All of these are bound by memory: AdamW reads four fp32 arrays and writes three (and the working copy), 28 to 30
// bytes an element; a sum of squares reads 4. One launch covers many ranges, which travel in the kernel's arguments:
// nothing is uploaded and the host never waits. Ranges are cut into chunks at fixed places, a block each.
constexpr int kThreads = 256;
constexpr int kRangesALaunch = 32;           // arguments of a kernel are limited to 4 KB
constexpr std::int64_t kChunk = 1 << 12;     // elements a block of an update
constexpr std::int64_t kSumChunk = 1 << 15;  // elements a block of a sum; never changed lightly: results depend on it
constexpr int kPackOfUpdate = 4;

template <class Range>
struct Batch {
  Range ranges[kRangesALaunch];
  std::int64_t first_block[kRangesALaunch + 1];  // of the launch
  int count;
};

struct AdamWArguments {
  float *parameter, *m, *v;
  const float* gradient;
  bf16* working;
  std::int64_t n;
  float decay, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_root, eps;
  bool aligned, bf16_parameter, bf16_moments;
};

struct SgdArguments {
  float *parameter, *momentum;
  const float* gradient;
  bf16* working;
  std::int64_t n;
  float decay, lr, mu, g_part, b_part;  // direction = g_part * g + b_part * b
  bool aligned;
};

struct RoundArguments {
  const float* from;
  bf16* to;
  std::int64_t n;
  bool aligned;
};

struct SumArguments {
  const float* data;
  std::int64_t n;
  bool aligned;
};

// A kernel's arguments with an index that the compiler does not know are copied to local memory unless they are read
// through a pointer to the constant bank; the first block of a range is found by a search in registers.
template <class Range>
__device__ __forceinline__ int range_of_block(const Batch<Range>& batch) {
  int found = 0;
#pragma unroll 1
  for (int i = 1; i < batch.count; ++i) {
    if (blockIdx.x >= batch.first_block[i]) found = i;
  }
  return found;
}

// Calls body(first, count) for the packs of this block's chunk of a range; a pack of 4 is whole, single elements
// otherwise.
template <class Body>
__device__ __forceinline__ void for_each_pack(std::int64_t chunk, std::int64_t n, bool aligned, Body&& body) {
  const std::int64_t begin = chunk * kChunk, end = begin + kChunk < n ? begin + kChunk : n;
  const std::int64_t whole = aligned ? begin + (end - begin) / kPackOfUpdate * kPackOfUpdate : begin;
  for (std::int64_t i = begin + threadIdx.x * kPackOfUpdate; i < whole; i += kThreads * kPackOfUpdate) {
    body(i, std::integral_constant<int, kPackOfUpdate>{});
  }
  for (std::int64_t i = whole + threadIdx.x; i < end; i += kThreads) body(i, std::integral_constant<int, 1>{});
}

// The working copy: four bf16 are one access of 8 bytes.
template <int n>
__device__ __forceinline__ void store_working(bf16* to, const float (&from)[n]) {
  if constexpr (n == 4) {
    const uint2 words = make_uint2(to_bf16_pair(from[0], from[1]), to_bf16_pair(from[2], from[3]));
    store_word<Cache::keep, uint2>(to, words);
  } else {
    store(to, from);
  }
}

__global__ void __launch_bounds__(kThreads)
    adamw_update(const __grid_constant__ Batch<AdamWArguments> batch, const float* clip, const std::int32_t* apply) {
  if (apply != nullptr && *apply == 0) return;
  const float factor = clip == nullptr ? 1.0F : *clip;
  const int range = range_of_block(batch);
  const AdamWArguments& r = batch.ranges[range];
  for_each_pack(blockIdx.x - batch.first_block[range], r.n, r.aligned, [&](std::int64_t at, auto pack) {
    float p[pack()], g[pack()], m[pack()], v[pack()];
    load<Cache::stream>(r.parameter + at, p);
    load<Cache::stream>(r.gradient + at, g);
    load<Cache::stream>(r.m + at, m);
    load<Cache::stream>(r.v + at, v);
#pragma unroll
    for (int i = 0; i < pack(); ++i) {
      const float gradient = g[i] * factor;
      m[i] += r.one_minus_beta1 * (gradient - m[i]);
      v[i] = r.beta2 * v[i] + r.one_minus_beta2 * gradient * gradient;
      p[i] = p[i] * r.decay - r.step_size * m[i] / (sqrtf(v[i]) * r.inverse_root + r.eps);
      if (r.bf16_parameter) p[i] = to_float(to_bf16(p[i]));
      if (r.bf16_moments) {
        m[i] = to_float(to_bf16(m[i]));
        v[i] = to_float(to_bf16(v[i]));
      }
    }
    store<Cache::stream>(r.parameter + at, p);
    store<Cache::stream>(r.m + at, m);
    store<Cache::stream>(r.v + at, v);
    if (r.working != nullptr) store_working(r.working + at, p);
  });
}

__global__ void __launch_bounds__(kThreads)
    sgd_update(const __grid_constant__ Batch<SgdArguments> batch, const float* clip, const std::int32_t* apply) {
  if (apply != nullptr && *apply == 0) return;
  const float factor = clip == nullptr ? 1.0F : *clip;
  const int range = range_of_block(batch);
  const SgdArguments& r = batch.ranges[range];
  for_each_pack(blockIdx.x - batch.first_block[range], r.n, r.aligned, [&](std::int64_t at, auto pack) {
    float p[pack()], g[pack()], b[pack()];
    load<Cache::stream>(r.parameter + at, p);
    load<Cache::stream>(r.gradient + at, g);
    if (r.momentum != nullptr) load<Cache::stream>(r.momentum + at, b);
#pragma unroll
    for (int i = 0; i < pack(); ++i) {
      const float gradient = g[i] * factor;
      b[i] = r.momentum == nullptr ? gradient : r.mu * b[i] + gradient;
      p[i] = p[i] * r.decay - r.lr * (r.g_part * gradient + r.b_part * b[i]);
    }
    store<Cache::stream>(r.parameter + at, p);
    if (r.momentum != nullptr) store<Cache::stream>(r.momentum + at, b);
    if (r.working != nullptr) store_working(r.working + at, p);
  });
}

__global__ void __launch_bounds__(kThreads) round_to_bf16(const RoundArguments r) {
  for_each_pack(blockIdx.x, r.n, r.aligned, [&](std::int64_t at, auto pack) {
    float values[pack()];
    load<Cache::stream>(r.from + at, values);
    store_working(r.to + at, values);
  });
}

__global__ void __launch_bounds__(kThreads) scale_values(float* values, std::int64_t n, bool aligned, float factor) {
  for_each_pack(blockIdx.x, n, aligned, [&](std::int64_t at, auto pack) {
    float v[pack()];
    load<Cache::stream>(values + at, v);
#pragma unroll
    for (int i = 0; i < pack(); ++i) v[i] *= factor;
    store<Cache::stream>(values + at, v);
  });
}

struct SumShared {
  double warps[32];
};

// sums[first + block] = sum of squares of one chunk. Squares of fp32 are exact in fp64, which no gradient overflows.
__global__ void __launch_bounds__(kThreads)
    squares_of_chunks(const __grid_constant__ Batch<SumArguments> batch, double* sums) {
  SumShared& shared = static_shared<SumShared>();
  const int range = range_of_block(batch);
  const SumArguments& r = batch.ranges[range];
  const std::int64_t begin = (blockIdx.x - batch.first_block[range]) * kSumChunk;
  const std::int64_t end = begin + kSumChunk < r.n ? begin + kSumChunk : r.n;
  double lanes[4] = {};
  for (std::int64_t i = begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
    float values[4];
    if (r.aligned) {
      load<Cache::stream>(r.data + i, end - i, values);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) values[k] = i + k < end ? r.data[i + k] : 0.0F;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) lanes[k] += static_cast<double>(values[k]) * static_cast<double>(values[k]);
  }
  double sum[1] = {(lanes[0] + lanes[1]) + (lanes[2] + lanes[3])};
  row_sums(sum, shared.warps);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum[0];
}

constexpr int kSumThreads = 1024;
__global__ void __launch_bounds__(kSumThreads) add_up_chunks(const double* sums, std::int64_t count, double* total) {
  SumShared& shared = static_shared<SumShared>();
  double sum[1] = {0.0};
  for (std::int64_t i = threadIdx.x; i < count; i += kSumThreads) sum[0] += sums[i];
  row_sums(sum, shared.warps);
  if (threadIdx.x == 0) *total = sum[0];
}

struct Decision {
  const double *sum_of_squares, *loss_sum;
  double loss_scale, loss_limit;
  float max_norm;
  float *norm, *clip;
  std::int32_t* apply;
};

__global__ void decide_step(const Decision d) {
  const auto root = static_cast<float>(sqrt(*d.sum_of_squares));
  const double loss = *d.loss_sum * d.loss_scale;
  const float wanted = d.max_norm / (root + 1e-6F);
  *d.norm = root;
  *d.clip = d.max_norm > 0.0F && wanted < 1.0F ? wanted : 1.0F;
  // x - x is 0 for what is finite and NaN for what is not.
  *d.apply = root - root == 0.0F && loss - loss == 0.0 && loss <= d.loss_limit ? 1 : 0;
}

bool aligned_to(std::size_t bytes, std::initializer_list<const void*> all) {
  return std::all_of(all.begin(), all.end(),
                     [&](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; });
}

AdamWArguments arguments_of(const AdamWRange& r) {
  const double beta1 = r.beta1, beta2 = r.beta2, lr = r.lr;
  const auto step = static_cast<double>(r.step);
  AdamWArguments a{};
  a.parameter = r.parameter;
  a.m = r.m;
  a.v = r.v;
  a.gradient = r.gradient;
  a.working = r.working;
  a.n = r.n;
  a.bf16_parameter = r.bf16_parameter;
  a.bf16_moments = r.bf16_moments;
  a.decay = static_cast<float>(1.0 - lr * static_cast<double>(r.weight_decay));
  a.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  a.beta2 = r.beta2;
  a.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  a.step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, step)));
  a.inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step)));
  a.eps = r.eps;
  a.aligned = aligned_to(16, {r.parameter, r.m, r.v, r.gradient}) && aligned_to(8, {r.working});
  return a;
}

SgdArguments arguments_of(const SgdRange& r) {
  SgdArguments a{};
  a.parameter = r.parameter;
  a.momentum = r.momentum;
  a.gradient = r.gradient;
  a.working = r.working;
  a.n = r.n;
  a.decay = static_cast<float>(1.0 - static_cast<double>(r.lr) * static_cast<double>(r.weight_decay));
  a.lr = r.lr;
  a.mu = r.mu;
  const bool nesterov = r.nesterov && r.momentum != nullptr;
  a.g_part = nesterov ? 1.0F : 0.0F;
  a.b_part = nesterov ? r.mu : 1.0F;
  a.aligned = aligned_to(16, {r.parameter, r.momentum, r.gradient}) && aligned_to(8, {r.working});
  return a;
}

SumArguments arguments_of(std::span<const float> r) {
  return {r.data(), static_cast<std::int64_t>(r.size()), aligned_to(16, {r.data()})};
}

// Calls body(batch, blocks) for all ranges that are not empty, kRangesALaunch at a time.
template <class Arguments, class Ranges, class Body>
void in_batches(const Ranges& ranges, std::int64_t chunk, Body&& body) {
  Batch<Arguments> batch{};
  const auto flush = [&] {
    if (batch.count > 0) body(batch, batch.first_block[batch.count]);
    batch = {};
  };
  for (const auto& range : ranges) {
    const Arguments arguments = arguments_of(range);
    if (arguments.n == 0) continue;
    if (batch.count == kRangesALaunch) flush();
    batch.ranges[batch.count] = arguments;
    batch.first_block[batch.count + 1] = batch.first_block[batch.count] + ceil_div(arguments.n, chunk);
    ++batch.count;
  }
  flush();
}

class CudaElementwise final : public ElementwiseOps {
 public:
  explicit CudaElementwise(Device& device) : sums_(device) {}

  void adamw(Stream& stream, std::span<const AdamWRange> ranges, const StepGate& gate) override {
    in_batches<AdamWArguments>(ranges, kChunk, [&](const auto& batch, std::int64_t blocks) {
      launch<adamw_update>(grid(stream, blocks), batch, gate.clip, gate.apply);
    });
  }

  void sgd(Stream& stream, std::span<const SgdRange> ranges, const StepGate& gate) override {
    in_batches<SgdArguments>(ranges, kChunk, [&](const auto& batch, std::int64_t blocks) {
      launch<sgd_update>(grid(stream, blocks), batch, gate.clip, gate.apply);
    });
  }

  void round(Stream& stream, const float* from, bf16* to, std::int64_t n) override {
    if (n == 0) return;
    const RoundArguments arguments{from, to, n, aligned_to(16, {from}) && aligned_to(8, {to})};
    launch<round_to_bf16>(grid(stream, ceil_div(n, kChunk)), arguments);
  }

  void scale(Stream& stream, float* values, std::int64_t n, float factor) override {
    if (n == 0) return;
    launch<scale_values>(grid(stream, ceil_div(n, kChunk)), values, n, aligned_to(16, {values}), factor);
  }

  void sum_of_squares(Stream& stream, std::span<const std::span<const float>> ranges, double* sum) override {
    std::int64_t chunks = 0;
    for (const auto range : ranges) chunks += ceil_div(static_cast<std::int64_t>(range.size()), kSumChunk);
    double* const sums = sums_.room<double>(std::max<std::int64_t>(chunks, 1));
    std::int64_t first = 0;
    in_batches<SumArguments>(ranges, kSumChunk, [&](const auto& batch, std::int64_t blocks) {
      launch<squares_of_chunks>(grid(stream, blocks), batch, sums + first);
      first += blocks;
    });
    launch<add_up_chunks>({dim3(1), dim3(kSumThreads), handle_of(stream)}, sums, chunks, sum);
  }

  void decide(Stream& stream, const double* sum_of_squares, const double* loss_sum, double loss_scale, float max_norm,
              double loss_limit, float* norm, float* clip, std::int32_t* apply) override {
    const Decision decision{sum_of_squares, loss_sum, loss_scale, loss_limit, max_norm, norm, clip, apply};
    launch<decide_step>({dim3(1), dim3(1), handle_of(stream)}, decision);
  }

 private:
  static Grid grid(Stream& stream, std::int64_t blocks) {
    return {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), handle_of(stream)};
  }

  Scratch sums_;
};

}  // namespace

std::int64_t elementwise_scratch_bytes(const Workload& workload) {
  std::int64_t chunks = 1;
  for (const std::int64_t length : workload.gradient_lengths) chunks += ceil_div(length, kSumChunk);
  return chunks * static_cast<std::int64_t>(sizeof(double));
}

std::unique_ptr<ElementwiseOps> make_elementwise_ops(Device& device) {
  return std::make_unique<CudaElementwise>(device);
}

}  // namespace polaron::cuda

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/families.h"

namespace polaron::cpu {
namespace {

// Ranges are cut into chunks at fixed places and threads get whole chunks, so results do not depend on their number.
constexpr std::int64_t kChunk = 1 << 14;
constexpr std::int64_t kSumChunk = 1 << 16;

std::int64_t size_of_range(const AdamWRange& range) { return range.n; }
std::int64_t size_of_range(const SgdRange& range) { return range.n; }
struct RoundRange {
  const float* from;
  bf16* to;
  std::int64_t n;
};
std::int64_t size_of_range(const RoundRange& range) { return range.n; }
std::int64_t size_of_range(std::span<const float> range) { return static_cast<std::int64_t>(range.size()); }

// Calls body(range, first, count, index) for every chunk of every range, `index` counting the chunks of all ranges.
// Each thread gets the chunks that begin in its share of the elements: many short ranges weigh no more than one long.
template <std::int64_t chunk, class Ranges, class Body>
void for_each_chunk(const Ranges& ranges, Body&& body) {
  std::int64_t total = 0;
  for (const auto& range : ranges) total += size_of_range(range);
#pragma omp parallel if (total > chunk)
  {
    const std::int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    // thread shares in elements; total * threads stays far below 2^63
    const std::int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
    std::int64_t offset = 0, index = 0;
    for (const auto& range : ranges) {
      const std::int64_t n = size_of_range(range), chunks = (n + chunk - 1) / chunk;
      const auto chunks_before = [&](std::int64_t element) {  // how many chunks of this range begin before it
        return std::clamp<std::int64_t>((element - offset + chunk - 1) / chunk, 0, chunks);
      };
      for (std::int64_t i = begin > offset ? chunks_before(begin) : 0; i < (end > offset ? chunks_before(end) : 0);
           ++i) {
        body(range, i * chunk, std::min(chunk, n - i * chunk), index + i);
      }
      offset += n;
      index += chunks;
    }
  }
}

bool closed(const StepGate& gate) { return gate.apply != nullptr && *gate.apply == 0; }
float clip_factor(const StepGate& gate) { return gate.clip == nullptr ? 1.0F : *gate.clip; }

// What the elements of a range share, in fp32, from double-precision bias corrections.
struct AdamWFactors {
  float decay, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_root, eps, clip;

  AdamWFactors(const AdamWRange& range, float clip_) : beta2(range.beta2), eps(range.eps), clip(clip_) {
    const double beta1_ = range.beta1, beta2_ = range.beta2, lr = range.lr;
    const auto step = static_cast<double>(range.step);
    decay = static_cast<float>(1.0 - lr * static_cast<double>(range.weight_decay));
    one_minus_beta1 = static_cast<float>(1.0 - beta1_);
    one_minus_beta2 = static_cast<float>(1.0 - beta2_);
    step_size = static_cast<float>(lr / (1.0 - std::pow(beta1_, step)));
    inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2_, step)));
  }
};

// to may be null.
void round_chunk(const float* from, bf16* to, std::int64_t first, std::int64_t count) {
  if (to == nullptr) return;
#pragma omp simd
  for (std::int64_t i = first; i < first + count; ++i) to[i] = to_bf16(from[i]);
}

void round_in_place(float* values, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) values[i] = to_float(to_bf16(values[i]));
}

void adamw_chunk(const AdamWRange& range, const AdamWFactors& f, std::int64_t first, std::int64_t count) {
  float* const parameter = range.parameter + first;
  const float* const gradient = range.gradient + first;
  float *const m = range.m + first, *const v = range.v + first;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * f.clip;
    const float new_m = m[i] + f.one_minus_beta1 * (g - m[i]);
    const float new_v = f.beta2 * v[i] + f.one_minus_beta2 * g * g;
    m[i] = new_m;
    v[i] = new_v;
    parameter[i] = parameter[i] * f.decay - f.step_size * new_m / (std::sqrt(new_v) * f.inverse_root + f.eps);
  }
  if (range.bf16_parameter) round_in_place(parameter, count);
  if (range.bf16_moments) {
    round_in_place(m, count);
    round_in_place(v, count);
  }
  round_chunk(range.parameter, range.working, first, count);
}

void sgd_chunk(const SgdRange& range, float clip, std::int64_t first, std::int64_t count) {
  float* const parameter = range.parameter + first;
  const float* const gradient = range.gradient + first;
  const auto decay = static_cast<float>(1.0 - static_cast<double>(range.lr) * static_cast<double>(range.weight_decay));
  const float lr = range.lr, mu = range.mu;
  if (range.momentum == nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) parameter[i] = parameter[i] * decay - lr * (gradient[i] * clip);
    return;
  }
  float* const momentum = range.momentum + first;
  // direction = g_part * g + b_part * b
  const float g_part = range.nesterov ? 1.0F : 0.0F, b_part = range.nesterov ? mu : 1.0F;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * clip;
    const float b = mu * momentum[i] + g;
    momentum[i] = b;
    parameter[i] = parameter[i] * decay - lr * (g_part * g + b_part * b);
  }
}

double squares_of(const float* values, std::int64_t count) {
  constexpr std::int64_t kLanes = 32;  // independent sums, so that additions need not wait for each other
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const auto value = static_cast<double>(values[i + lane]);
      lanes[lane] += value * value;
    }
  }
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  for (; i < count; ++i) sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return sum;
}

class CpuElementwise final : public ElementwiseOps {
 public:
  void adamw(Stream&, std::span<const AdamWRange> ranges, const StepGate& gate) override {
    if (closed(gate)) return;
    const float clip = clip_factor(gate);
    for_each_chunk<kChunk>(ranges, [&](const AdamWRange& range, std::int64_t first, std::int64_t count, std::int64_t) {
      adamw_chunk(range, AdamWFactors(range, clip), first, count);
    });
  }

  void sgd(Stream&, std::span<const SgdRange> ranges, const StepGate& gate) override {
    if (closed(gate)) return;
    const float clip = clip_factor(gate);
    for_each_chunk<kChunk>(ranges, [&](const SgdRange& range, std::int64_t first, std::int64_t count, std::int64_t) {
      sgd_chunk(range, clip, first, count);
      round_chunk(range.parameter, range.working, first, count);
    });
  }

  void scale(Stream&, float* values, std::int64_t n, float factor) override {
#pragma omp parallel for simd if (n > kChunk)
    for (std::int64_t i = 0; i < n; ++i) values[i] *= factor;
  }

  void round(Stream&, const float* from, bf16* to, std::int64_t n) override {
    const RoundRange range{from, to, n};
    for_each_chunk<kChunk>(std::span(&range, 1), [](const RoundRange& r, std::int64_t first, std::int64_t count,
                                                    std::int64_t) { round_chunk(r.from, r.to, first, count); });
  }

  void sum_of_squares(Stream&, std::span<const std::span<const float>> ranges, double* sum) override {
    std::int64_t chunks = 0;
    for (const std::span<const float> range : ranges) chunks += (size_of_range(range) + kSumChunk - 1) / kSumChunk;
    chunk_sums_.resize(chunks);
    double* const sums = chunk_sums_.data();
    for_each_chunk<kSumChunk>(
        ranges, [&](std::span<const float> range, std::int64_t first, std::int64_t count, std::int64_t index) {
          sums[index] = squares_of(range.data() + first, count);
        });
    *sum = 0.0;
    for (std::int64_t i = 0; i < chunks; ++i) *sum += sums[i];
  }

  void decide(Stream&, const double* sum_of_squares, const double* loss_sum, double loss_scale, float max_norm,
              double loss_limit, float* norm, float* clip, std::int32_t* apply) override {
    const auto root = static_cast<float>(std::sqrt(*sum_of_squares));
    const double loss = *loss_sum * loss_scale;
    *norm = root;
    *clip = max_norm > 0.0F ? std::min(1.0F, max_norm / (root + 1e-6F)) : 1.0F;
    *apply = std::isfinite(root) && std::isfinite(loss) && loss <= loss_limit ? 1 : 0;
  }

 private:
  std::vector<double> chunk_sums_;  // kept between calls, which come one at a time
};

}  // namespace

std::unique_ptr<ElementwiseOps> make_elementwise_ops() { return std::make_unique<CpuElementwise>(); }

}  // namespace polaron::cpu

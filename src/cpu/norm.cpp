#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cpu/element.h"
#include "cpu/families.h"

namespace polaron::cpu {
namespace {

constexpr std::int64_t kParallelElements = 1 << 14;  // below, starting threads costs more than it saves
// Rows whose weight gradients are summed together before the blocks' sums are added up in order. Fixed, so that the
// result does not depend on the number of threads; short, so that few rounding errors pile up.
constexpr std::int64_t kBlockRows = 32;
constexpr std::int64_t kStrip = 64;  // columns that one thread adds up at a time

struct Statistics {
  float mean, rstd;
};

struct Moments {
  float sum, squares;
};

template <class T>
Moments moments_of(const T* x, std::int64_t width) {
  float sum = 0.0F, squares = 0.0F;
#pragma omp simd reduction(+ : sum, squares)
  for (std::int64_t c = 0; c < width; ++c) {
    sum += load(x + c);
    squares += load(x + c) * load(x + c);
  }
  return {sum, squares};
}

// x = a + b, rounded to T, and the moments of that.
template <class T>
Moments add_rows(const T* a, const T* b, std::int64_t width, T* x) {
  float sum = 0.0F, squares = 0.0F;
#pragma omp simd reduction(+ : sum, squares)
  for (std::int64_t c = 0; c < width; ++c) {
    store(x + c, load(a + c) + load(b + c));
    const float rounded = load(x + c);
    sum += rounded;
    squares += rounded * rounded;
  }
  return {sum, squares};
}

// Chan, Golub and LeVeque's corrected two-pass variance on a row that the first pass has brought into the cache: the
// sum of the deviations, zero but for rounding, mends both the mean and the sum of squares.
template <class T>
Statistics layernorm_statistics(const T* x, float sum, std::int64_t width, float eps) {
  const auto n = static_cast<float>(width);
  const float rough = sum / n;
  float deviations = 0.0F, squares = 0.0F;
#pragma omp simd reduction(+ : deviations, squares)
  for (std::int64_t c = 0; c < width; ++c) {
    const float deviation = load(x + c) - rough;
    deviations += deviation;
    squares += deviation * deviation;
  }
  const float correction = deviations / n;
  const float variance = std::max(squares / n - correction * correction, 0.0F);  // in this order NaN stays NaN
  return {rough + correction, 1.0F / std::sqrt(variance + eps)};
}

Statistics rmsnorm_statistics(float squares, std::int64_t width, float eps) {
  return {0.0F, 1.0F / std::sqrt(squares / static_cast<float>(width) + eps)};
}

template <class T>
void normalise(const T* x, const Statistics& s, const float* weight, const float* bias, std::int64_t width, T* out) {
#pragma omp simd
  for (std::int64_t c = 0; c < width; ++c) {
    store(out + c, (load(x + c) - s.mean) * s.rstd * weight[c] + bias[c]);
  }
}

// Sums over a row of g and of g * xhat, with xhat = (x - mean) * rstd and g = dy * weight.
struct GradientSums {
  float g, g_xhat;
};

// The same row's dy * xhat and dy are added to weight_sums and bias_sums, where they are wanted.
template <bool weight_wanted, bool bias_wanted, class T>
GradientSums sum_gradients(const T* dy, const T* x, const Statistics& s, const float* weight, std::int64_t width,
                           float* weight_sums, float* bias_sums) {
  float sum = 0.0F, product = 0.0F;
#pragma omp simd reduction(+ : sum, product)
  for (std::int64_t c = 0; c < width; ++c) {
    const float xhat = (load(x + c) - s.mean) * s.rstd;
    if constexpr (weight_wanted) weight_sums[c] += load(dy + c) * xhat;
    if constexpr (bias_wanted) bias_sums[c] += load(dy + c);
    const float g = load(dy + c) * weight[c];
    sum += g;
    product += g * xhat;
  }
  return {sum, product};
}

// dx += rstd * (g - mean(g) - xhat * mean(g * xhat)); RMSNorm has no mean(g).
template <class T>
void add_input_gradient(const T* dy, const T* x, const Statistics& s, const float* weight, const GradientSums& sums,
                        bool centred, std::int64_t width, T* dx) {
  const float mean_g = centred ? sums.g / static_cast<float>(width) : 0.0F;
  const float mean_product = sums.g_xhat / static_cast<float>(width);
#pragma omp simd
  for (std::int64_t c = 0; c < width; ++c) {
    const float g = load(dy + c) * weight[c];
    const float xhat = (load(x + c) - s.mean) * s.rstd;
    store(dx + c, load(dx + c) + s.rstd * (g - mean_g - xhat * mean_product));
  }
}

void add_row(const float* from, std::int64_t width, float* sum) {
#pragma omp simd
  for (std::int64_t c = 0; c < width; ++c) sum[c] += from[c];
}

class CpuNorm final : public NormOps {
 public:
  void forward(Stream&, NormKind kind, float eps, const Tensor& residual_in, const Tensor& delta, const Tensor& weight,
               const Tensor& bias, const Tensor& residual_out, const Tensor& normed, const Tensor& mean,
               const Tensor& rstd) override {
    if (delta && !residual_out) throw std::logic_error("norm forward: a delta needs a residual_out");
    with_element_type(normed.dtype, "norm forward", [&](auto type) {
      using T = decltype(type);
      const std::int64_t width = normed.cols;
      const std::vector<float> ones(weight ? 0 : width, 1.0F), zeros(bias ? 0 : width, 0.0F);
      const float* const scale = weight ? weight.f32() : ones.data();
      const float* const shift = bias ? bias.f32() : zeros.data();
      T *const in = elements<T>(residual_in), *const added = elements<T>(delta), *const out = elements<T>(normed);
      T* const kept = elements<T>(residual_out);
      float *const means = elements<float>(mean), *const rstds = rstd.f32();
#pragma omp parallel for schedule(static) if (normed.elements() >= kParallelElements)
      for (std::int64_t n = 0; n < normed.rows; ++n) {
        const T* x = row_of(in, residual_in, n);
        T* const sum = row_of(kept, residual_out, n);
        Moments moments;
        if (added != nullptr) {
          moments = add_rows(x, row_of(added, delta, n), width, sum);
          x = sum;
        } else {
          moments = moments_of(x, width);
          if (sum != nullptr && sum != x) std::copy_n(x, width, sum);
        }
        const Statistics s = kind == NormKind::layernorm ? layernorm_statistics(x, moments.sum, width, eps)
                                                         : rmsnorm_statistics(moments.squares, width, eps);
        normalise(x, s, scale, shift, width, row_of(out, normed, n));
        if (means != nullptr) means[n * mean.stride] = s.mean;
        rstds[n * rstd.stride] = s.rstd;
      }
    });
  }

  void backward(Stream&, NormKind kind, const Tensor& d_normed, const Tensor& residual, const Tensor& weight,
                const Tensor& mean, const Tensor& rstd, const Tensor& d_residual, const Tensor& weight_grad,
                const Tensor& bias_grad) override {
    const bool centred = kind == NormKind::layernorm;
    if (centred && !mean) throw std::logic_error("norm backward: LayerNorm needs the mean of forward");
    with_element_type(d_normed.dtype, "norm backward", [&](auto type) {
      using T = decltype(type);
      const std::int64_t rows = d_normed.rows, width = d_normed.cols, blocks = (rows + kBlockRows - 1) / kBlockRows;
      const std::vector<float> ones(weight ? 0 : width, 1.0F);
      const float* const scale = weight ? weight.f32() : ones.data();
      T *const dy = elements<T>(d_normed), *const x = elements<T>(residual), *const dx = elements<T>(d_residual);
      float *const means = centred ? mean.f32() : nullptr, *const rstds = rstd.f32();
      float *const d_weight = elements<float>(weight_grad), *const d_bias = elements<float>(bias_grad);
      float* const weight_sums = room(weight_sums_, weight_grad, blocks * width);
      float* const bias_sums = room(bias_sums_, bias_grad, blocks * width);
      const auto sum_row = weight_grad ? bias_grad ? sum_gradients<true, true, T> : sum_gradients<true, false, T>
                           : bias_grad ? sum_gradients<false, true, T>
                                       : sum_gradients<false, false, T>;

#pragma omp parallel if (d_normed.elements() >= kParallelElements)
      {
#pragma omp for schedule(static)
        for (std::int64_t block = 0; block < blocks; ++block) {
          float* const weight_block = weight_grad ? weight_sums + block * width : nullptr;
          float* const bias_block = bias_grad ? bias_sums + block * width : nullptr;
          if (weight_grad) std::fill_n(weight_block, width, 0.0F);
          if (bias_grad) std::fill_n(bias_block, width, 0.0F);
          for (std::int64_t n = block * kBlockRows; n < std::min(rows, (block + 1) * kBlockRows); ++n) {
            const Statistics s{centred ? means[n * mean.stride] : 0.0F, rstds[n * rstd.stride]};
            const T *const dy_row = row_of(dy, d_normed, n), *const x_row = row_of(x, residual, n);
            const GradientSums sums = sum_row(dy_row, x_row, s, scale, width, weight_block, bias_block);
            add_input_gradient(dy_row, x_row, s, scale, sums, centred, width, row_of(dx, d_residual, n));
          }
        }
#pragma omp for schedule(static)
        for (std::int64_t strip = 0; strip < (width + kStrip - 1) / kStrip; ++strip) {
          if (weight_grad) add_up(weight_sums, blocks, width, strip * kStrip, d_weight);
          if (bias_grad) add_up(bias_sums, blocks, width, strip * kStrip, d_bias);
        }
      }
    });
  }

 private:
  static float* room(std::vector<float>& memory, const Tensor& wanted_for, std::int64_t count) {
    if (wanted_for && static_cast<std::int64_t>(memory.size()) < count) memory.resize(count);
    return memory.data();
  }

  // gradient[c] += sum of sums[block][c] in the order of the blocks, for the columns of one strip.
  static void add_up(const float* sums, std::int64_t blocks, std::int64_t width, std::int64_t first, float* gradient) {
    const std::int64_t count = std::min(kStrip, width - first);
    std::array<float, kStrip> total{};
    for (std::int64_t block = 0; block < blocks; ++block) {
      add_row(sums + block * width + first, count, total.data());
    }
    add_row(total.data(), count, gradient + first);
  }

  // One partial sum a block of rows. Kept between calls, which come one at a time.
  std::vector<float> weight_sums_, bias_sums_;
};

}  // namespace

std::unique_ptr<NormOps> make_norm_ops() { return std::make_unique<CpuNorm>(); }

}  // namespace polaron::cpu

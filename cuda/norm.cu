#include <algorithm>
#include <stdexcept>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

// Both kernels are bound by memory. Forward reads the residual and delta once and writes the sum and the normed row
// once; backward reads d_normed and the residual once and reads and writes d_residual once. Rows stay in registers in
// between: a row belongs to `blockDim.x` threads, each of which holds a few packs of it, so that narrow rows need one
// warp and no barrier.
constexpr int kForwardElements = 32;   // that a thread holds, in packs of what one access takes
constexpr int kBackwardElements = 16;  // weight gradients take registers too
constexpr int kMostThreads = 512;      // of a row
constexpr int kWarps = kMostThreads / 32;
constexpr int kForwardThreads = 128;  // of a block whose rows are narrower
constexpr int kBackwardThreads = 256;
// Blocks of backward, each of which sums the weight gradients of its rows: fixed, so that sums do not depend on the
// device. Two for each multiprocessor of an H100.
constexpr std::int64_t kBackwardBlocks = 264;

template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  __device__ T* row(std::int64_t n) const { return data + n * stride; }
};
template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {elements<T>(tensor), tensor.stride};
}

template <class T>
struct Forward {
  Rows<T> residual_in, delta, residual_out, normed;
  const float *weight, *bias;
  Rows<float> mean, rstd;
  std::int64_t rows, width;
  float eps;
};

struct RowSums {
  float first[kWarps], second[2 * kWarps];
};

template <class T, int pack, bool centred>
__global__ void __launch_bounds__(kMostThreads) norm_forward(const Forward<T> p) {
  RowSums& scratch = static_shared<RowSums>();  // used where a block has one row only
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (n >= p.rows) return;  // whole warps, and only in blocks without barriers
  const auto width = static_cast<float>(p.width);
  const auto column = [&](int j) { return static_cast<std::int64_t>(threadIdx.x + j * blockDim.x) * pack; };

  constexpr int held = kForwardElements / pack;
  float x[held][pack];
  float sums[1] = {0.0F};
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const std::int64_t c = column(j), count = p.width - c;
    if (count <= 0) continue;
    load<Cache::stream>(p.residual_in.row(n) + c, count, x[j]);
    if (p.delta.data != nullptr) {
      float added[pack];
      load<Cache::stream>(p.delta.row(n) + c, count, added);
#pragma unroll
      for (int i = 0; i < pack; ++i) x[j][i] = rounded<T>(x[j][i] + added[i]);
    }
    if (p.residual_out.data != nullptr && (p.delta.data != nullptr || p.residual_out.data != p.residual_in.data)) {
      store(p.residual_out.row(n) + c, count, x[j]);
    }
#pragma unroll
    for (int i = 0; i < pack; ++i) sums[0] += x[j][i];  // beyond the width: zeros
  }

  // Chan, Golub and LeVeque's corrected two-pass variance: the sum of the deviations, zero but for rounding, mends the
  // mean and the sum of squares.
  float rough = 0.0F;
  if constexpr (centred) {
    row_sums(sums, scratch.first);
    rough = sums[0] / width;
  }
  float moments[2] = {0.0F, 0.0F};  // of the deviations
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const std::int64_t count = p.width - column(j);
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      if (i >= count) continue;
      const float deviation = x[j][i] - rough;
      moments[0] += deviation;
      moments[1] += deviation * deviation;
    }
  }
  row_sums(moments, scratch.second);
  const float correction = centred ? moments[0] / width : 0.0F;
  const float mean = rough + correction;
  const float variance = moments[1] / width - correction * correction;
  const float rstd = 1.0F / sqrtf((variance < 0.0F ? 0.0F : variance) + p.eps);  // NaN stays NaN

#pragma unroll
  for (int j = 0; j < held; ++j) {
    const std::int64_t c = column(j), count = p.width - c;
    if (count <= 0) continue;
    float weight[pack], bias[pack];
    if (p.weight != nullptr) load(p.weight + c, count, weight);
    if (p.bias != nullptr) load(p.bias + c, count, bias);
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      const float xhat = (x[j][i] - mean) * rstd;
      x[j][i] = (p.weight != nullptr ? xhat * weight[i] : xhat) + (p.bias != nullptr ? bias[i] : 0.0F);
    }
    store(p.normed.row(n) + c, count, x[j]);
  }
  if (threadIdx.x == 0) {
    if (p.mean.data != nullptr) *p.mean.row(n) = mean;
    *p.rstd.row(n) = rstd;
  }
}

template <class T>
struct Backward {
  Rows<T> d_normed, residual, d_residual;
  const float* weight;
  Rows<float> mean, rstd;
  float *weight_sums, *bias_sums;  // [blocks, width], null where not wanted
  std::int64_t rows, width;
};

// With xhat = (x - mean) * rstd and g = dy * weight: dx += rstd * (g - mean(g) - xhat * mean(g * xhat)); RMSNorm has no
// mean(g).
template <class T, int pack, bool centred>
__global__ void __launch_bounds__(kMostThreads) norm_backward(const Backward<T> p) {
  float* const scratch =
      dynamic_shared<float>();  // row_sums: 2 turns x rows of the block x warps x 2; then a row of the block
  const auto width = static_cast<float>(p.width);
  const auto column = [&](int j) { return static_cast<std::int64_t>(threadIdx.x + j * blockDim.x) * pack; };
  const unsigned sums_of_row = blockDim.x / 32 * 2;
  constexpr int held = kBackwardElements / pack;
  float d_weight[held][pack] = {}, d_bias[held][pack] = {};

  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.y;
  unsigned turn = 0;
  // All rows of a block take the same number of turns: they meet at barriers.
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.y; first < p.rows;
       first += step, turn ^= 1U) {
    const std::int64_t n = first + threadIdx.y;
    const bool there = n < p.rows;
    const float mean = centred && there ? *p.mean.row(n) : 0.0F, rstd = there ? *p.rstd.row(n) : 0.0F;
    float dy[held][pack], xhat[held][pack];
    float sums[2] = {0.0F, 0.0F};
#pragma unroll
    for (int j = 0; j < held; ++j) {
      const std::int64_t c = column(j), count = there ? p.width - c : 0;
      if (count <= 0) continue;
      load<Cache::stream>(p.d_normed.row(n) + c, count, dy[j]);
      load<Cache::stream>(p.residual.row(n) + c, count, xhat[j]);
      float weight[pack];
      if (p.weight != nullptr) load(p.weight + c, count, weight);
#pragma unroll
      for (int i = 0; i < pack; ++i) {
        xhat[j][i] = i < count ? (xhat[j][i] - mean) * rstd : 0.0F;
        d_weight[j][i] += dy[j][i] * xhat[j][i];
        d_bias[j][i] += dy[j][i];
        dy[j][i] = p.weight != nullptr ? dy[j][i] * weight[i] : dy[j][i];
        sums[0] += dy[j][i];
        sums[1] += dy[j][i] * xhat[j][i];
      }
    }
    row_sums(sums, scratch + (turn * blockDim.y + threadIdx.y) * sums_of_row);
    const float mean_g = centred ? sums[0] / width : 0.0F, mean_product = sums[1] / width;
#pragma unroll
    for (int j = 0; j < held; ++j) {
      const std::int64_t c = column(j), count = there ? p.width - c : 0;
      if (count <= 0) continue;
      float dx[pack];
      load(p.d_residual.row(n) + c, count, dx);
#pragma unroll
      for (int i = 0; i < pack; ++i) dx[i] += rstd * (dy[j][i] - mean_g - xhat[j][i] * mean_product);
      store(p.d_residual.row(n) + c, count, dx);
    }
  }

  // The rows of the block one after the other, in registers of the first.
  for (unsigned row = 1; row < blockDim.y; ++row) {
    __syncthreads();
    if (threadIdx.y == row) {
#pragma unroll
      for (int j = 0; j < held; ++j) {
#pragma unroll
        for (int i = 0; i < pack; ++i) {
          scratch[((j * pack + i) * 2) * blockDim.x + threadIdx.x] = d_weight[j][i];
          scratch[((j * pack + i) * 2 + 1) * blockDim.x + threadIdx.x] = d_bias[j][i];
        }
      }
    }
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll
      for (int j = 0; j < held; ++j) {
#pragma unroll
        for (int i = 0; i < pack; ++i) {
          d_weight[j][i] += scratch[((j * pack + i) * 2) * blockDim.x + threadIdx.x];
          d_bias[j][i] += scratch[((j * pack + i) * 2 + 1) * blockDim.x + threadIdx.x];
        }
      }
    }
  }
  if (threadIdx.y > 0) return;
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const std::int64_t c = column(j), count = p.width - c, at = blockIdx.x * p.width + c;
#pragma unroll
    for (int i = 0; i < pack; ++i) {  // rows of the sums need not be aligned
      if (i < count && p.weight_sums != nullptr) p.weight_sums[at + i] = d_weight[j][i];
      if (i < count && p.bias_sums != nullptr) p.bias_sums[at + i] = d_bias[j][i];
    }
  }
}

constexpr int kSumColumns = 32, kSumRows = 8;
struct ColumnSums {
  float values[kSumRows][kSumColumns];
};

// to[c] += sum over blocks of sums[block][c], in fixed order. Reads `blocks` rows once.
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    norm_add_column_sums(const float* sums, std::int64_t blocks, std::int64_t width, float* to) {
  ColumnSums& shared = static_shared<ColumnSums>();
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  float sum = 0.0F;
  for (std::int64_t block = threadIdx.y; block < blocks && c < width; block += kSumRows) sum += sums[block * width + c];
  shared.values[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= width) return;
  for (int row = 1; row < kSumRows; ++row) sum += shared.values[row][threadIdx.x];
  to[c] += sum;
}

// Threads a row: whole warps, each thread with so many elements at most.
int threads_for(std::int64_t width, int elements_held) {
  const std::int64_t threads = ceil_div(width, std::int64_t{elements_held} * 32) * 32;
  if (threads > kMostThreads) {
    throw Error(Exit::usage, "The CUDA backend normalises rows of at most " +
                                 std::to_string(kMostThreads * elements_held) + " elements, and model.width is " +
                                 std::to_string(width) + ": choose a narrower model, or --device cpu.");
  }
  return static_cast<int>(threads);
}

// Blocks of so many rows at a time.
std::int64_t backward_blocks(std::int64_t rows, int rows_at_once) {
  return std::min(kBackwardBlocks, ceil_div(rows, rows_at_once));
}

class CudaNorm final : public NormOps {
 public:
  explicit CudaNorm(Device& device) : sums_(device) {}

  void forward(Stream& stream, NormKind kind, float eps, const Tensor& residual_in, const Tensor& delta,
               const Tensor& weight, const Tensor& bias, const Tensor& residual_out, const Tensor& normed,
               const Tensor& mean, const Tensor& rstd) override {
    if (delta && !residual_out) throw std::logic_error("norm forward: a delta needs a residual_out");
    with_element_type(normed.dtype, "norm forward", [&](auto type) {
      using T = decltype(type);
      const Forward<T> p{rows_of<T>(residual_in),
                         rows_of<T>(delta),
                         rows_of<T>(residual_out),
                         rows_of<T>(normed),
                         elements<float>(weight),
                         elements<float>(bias),
                         rows_of<float>(mean),
                         rows_of<float>(rstd),
                         normed.rows,
                         normed.cols,
                         eps};
      with_pack<T>(aligned_rows({residual_in, delta, weight, bias, residual_out, normed}), [&](auto pack) {
        const int threads = threads_for(normed.cols, kForwardElements);
        const int rows = threads == 32 ? kForwardThreads / 32 : 1;  // several only where none needs a barrier
        const Grid grid{dim3(static_cast<unsigned>(ceil_div(normed.rows, rows))),
                        dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows)), handle_of(stream)};
        if (kind == NormKind::layernorm) {
          launch<norm_forward<T, pack(), true>>(grid, p);
        } else {
          launch<norm_forward<T, pack(), false>>(grid, p);
        }
      });
    });
  }

  void backward(Stream& stream, NormKind kind, const Tensor& d_normed, const Tensor& residual, const Tensor& weight,
                const Tensor& mean, const Tensor& rstd, const Tensor& d_residual, const Tensor& weight_grad,
                const Tensor& bias_grad) override {
    const bool centred = kind == NormKind::layernorm;
    if (centred && !mean) throw std::logic_error("norm backward: LayerNorm needs the mean of forward");
    const std::int64_t width = d_normed.cols;
    with_element_type(d_normed.dtype, "norm backward", [&](auto type) {
      using T = decltype(type);
      with_pack<T>(aligned_rows({d_normed, residual, weight, d_residual}), [&](auto pack) {
        const int threads = threads_for(width, kBackwardElements);
        const int rows = std::max(1, kBackwardThreads / threads);
        const std::int64_t blocks = backward_blocks(d_normed.rows, rows);
        float* const sums = sums_.room<float>(2 * blocks * width);
        const Backward<T> p{rows_of<T>(d_normed),
                            rows_of<T>(residual),
                            rows_of<T>(d_residual),
                            elements<float>(weight),
                            rows_of<float>(mean),
                            rows_of<float>(rstd),
                            weight_grad ? sums : nullptr,
                            bias_grad ? sums + blocks * width : nullptr,
                            d_normed.rows,
                            width};
        const int row_sums = 2 * rows * threads / 32 * 2;
        const int merging = rows > 1 ? kBackwardElements * 2 * threads : 0;
        const Grid grid{dim3(static_cast<unsigned>(blocks)),
                        dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows)), handle_of(stream),
                        static_cast<std::size_t>(std::max(row_sums, merging)) * sizeof(float)};
        if (centred) {
          launch<norm_backward<T, pack(), true>>(grid, p);
        } else {
          launch<norm_backward<T, pack(), false>>(grid, p);
        }
        add_up(stream, p.weight_sums, blocks, weight_grad);
        add_up(stream, p.bias_sums, blocks, bias_grad);
      });
    });
  }

 private:
  static void add_up(Stream& stream, const float* sums, std::int64_t blocks, const Tensor& to) {
    if (!to) return;
    launch<norm_add_column_sums>(
        {dim3(static_cast<unsigned>(ceil_div(to.cols, kSumColumns))), dim3(kSumColumns, kSumRows), handle_of(stream)},
        sums, blocks, to.cols, to.f32());
  }

  Scratch sums_;
};

}  // namespace

std::int64_t norm_scratch_bytes(const Workload& workload) {
  const int rows_at_once = std::max(1, kBackwardThreads / threads_for(workload.width, kBackwardElements));
  return 2 * backward_blocks(workload.rows(), rows_at_once) * workload.width * static_cast<std::int64_t>(sizeof(float));
}

std::unique_ptr<NormOps> make_norm_ops(Device& device) { return std::make_unique<CudaNorm>(device); }

}  // namespace polaron::cuda

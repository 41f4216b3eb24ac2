#include <algorithm>
#include <cfloat>
#include <cmath>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

// Bound by memory: logits are read once and their gradient is written once. A block owns a row. On the way in each
// thread keeps a running maximum and the sum of exponentials below it (Milakov and Gimelshein 2018); for the gradient,
// the row waits in shared memory where it fits (112 KB, two rows a multiprocessor: 57,000 logits in bf16; less on
// devices that have less), and is read again through the L2 cache where it does not.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr std::size_t kMostKept = 112 << 10U;
constexpr float kLog2E = 1.44269504F;

struct Maximum {
  float maximum, sum;  // sum of e^(z - maximum)
};

// The lowest finite maximum of a thread that has seen nothing: no difference of maxima is then infinity minus infinity.
__device__ __forceinline__ Maximum join(const Maximum& a, const Maximum& b) {
  const float maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
  return {maximum, a.sum * exp2f((a.maximum - maximum) * kLog2E) + b.sum * exp2f((b.maximum - maximum) * kLog2E)};
}
__device__ __forceinline__ Maximum warp_join(Maximum value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Maximum other{__shfl_down_sync(kWholeWarp, value.maximum, static_cast<unsigned>(offset)),
                        __shfl_down_sync(kWholeWarp, value.sum, static_cast<unsigned>(offset))};
    value = join(value, other);
  }
  return value;  // of lane 0: those of others are of no use
}

template <class T>
struct Rows {
  T* logits;
  std::int64_t stride, cols, vocabulary;
  const std::int32_t* targets;
  double* losses;  // one a row
  Softcap softcap;
  float scale;
};

// Aligned as the dynamic part behind it, so that its size is what it takes.
struct alignas(128) RowShared {
  Maximum warps[kWarps];
  float poison[kWarps];
  float maximum, factor, target_gradient;
};

// The value after the soft cap; slope: its derivative.
template <bool capped>
__device__ __forceinline__ float cap(float z, const Softcap& softcap, float& slope) {
  if constexpr (!capped) return z;
  if (softcap.form == Softcap::Form::tanh) {
    const float t = tanhf(z / softcap.cap);
    slope = (1.0F - t) * (1.0F + t);
    return softcap.cap * t;
  }
  const float steep = softcap.cap * 1e9F;  // beyond it the cap is reached, and squares would leave fp32's range
  z = fminf(fmaxf(z, -steep), steep);
  const float x = z / softcap.cap, shrink = 1.0F / sqrtf(x * x + 1.0F);
  slope = shrink * shrink * shrink;
  return z * shrink;
}

template <class T, int pack, bool capped, bool gradient, bool kept>
__global__ void __launch_bounds__(kThreads) cross_entropy_rows(const Rows<T> p) {
  RowShared& shared = static_shared<RowShared>();
  T* const row_copy = dynamic_shared<T>();
  T* const row = p.logits + static_cast<std::int64_t>(blockIdx.x) * p.stride;
  const std::int32_t target = p.targets[blockIdx.x];
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * pack, step = kThreads * pack;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  if (target < 0 || target >= p.vocabulary) {  // the same for the whole block
    if (threadIdx.x == 0) p.losses[blockIdx.x] = target == -1 ? 0.0 : __builtin_nan("");
    if constexpr (gradient) {
      const float zeros[pack] = {};
      for (std::int64_t c = first; c < p.cols; c += step) store<Cache::stream>(row + c, p.cols - c, zeros);
    }
    return;
  }

  Maximum mine{-FLT_MAX, 0.0F};
  float poison = 0.0F;  // NaN when a logit is infinite or NaN: maximum, soft cap and e^-inf would hide some of these
  for (std::int64_t c = first; c < p.vocabulary; c += step) {
    const std::int64_t count = p.vocabulary - c;
    float z[pack], slope;
    load<kept || !gradient ? Cache::stream : Cache::keep>(row + c, count, z);
    if constexpr (kept) store<Cache::none>(row_copy + c, count, z);
    Maximum here{mine.maximum, 0.0F};
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      poison += z[i] * 0.0F;
      z[i] = cap<capped>(z[i], p.softcap, slope);
      if (i < count && z[i] > here.maximum) here.maximum = z[i];
    }
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      if (i < count) here.sum += exp2f((z[i] - here.maximum) * kLog2E);
    }
    mine = {here.maximum, mine.sum * exp2f((mine.maximum - here.maximum) * kLog2E) + here.sum};
  }
  mine = warp_join(mine);
  poison = warp_sum(poison);
  if (lane == 0) {
    shared.warps[warp] = mine;
    shared.poison[warp] = poison;
  }
  __syncthreads();
  if (warp == 0) {
    Maximum all = warp_join(lane < kWarps ? shared.warps[lane] : Maximum{-FLT_MAX, 0.0F});
    const float poisoned = warp_sum(lane < kWarps ? shared.poison[lane] : 0.0F);
    if (lane == 0) {
      all.sum += poisoned;
      float z[1], slope = 1.0F;
      load(row + target, z);
      const float value = cap<capped>(z[0], p.softcap, slope);
      // The maximum and the logarithm are never added: next to a large maximum the logarithm would lose its digits.
      const float log_probability = (value - all.maximum) - logf(all.sum);
      p.losses[blockIdx.x] = -(static_cast<double>(value - all.maximum) - static_cast<double>(logf(all.sum)));
      shared.maximum = all.maximum;
      shared.factor = p.scale / all.sum;
      shared.target_gradient = p.scale * expm1f(log_probability) * slope;
    }
  }
  __syncthreads();
  if constexpr (gradient) {
    const float maximum = shared.maximum, factor = shared.factor, of_target = shared.target_gradient;
    for (std::int64_t c = first; c < p.cols; c += step) {
      const std::int64_t count = p.vocabulary - c;  // 0 or less in the padding
      float z[pack] = {};
      if (count > 0 && kept) load<Cache::none>(row_copy + c, count, z);
      if (count > 0 && !kept) load(row + c, count, z);
#pragma unroll
      for (int i = 0; i < pack; ++i) {
        float slope = 1.0F;
        const float value = cap<capped>(z[i], p.softcap, slope);
        const float g = exp2f((value - maximum) * kLog2E) * factor * slope;
        z[i] = i >= count ? 0.0F : c + i == target ? of_target : g;
      }
      store<Cache::stream>(row + c, p.cols - c, z);
    }
  }
}

constexpr int kSumThreads = 1024;
struct SumShared {
  double warps[kSumThreads / 32];
};

// *sum += all losses, in fixed order.
__global__ void __launch_bounds__(kSumThreads) cross_entropy_sum(const double* losses, std::int64_t rows, double* sum) {
  SumShared& shared = static_shared<SumShared>();
  double mine[1] = {0.0};
  for (std::int64_t n = threadIdx.x; n < rows; n += kSumThreads) mine[0] += losses[n];
  row_sums(mine, shared.warps);
  if (threadIdx.x == 0) *sum += mine[0];
}

class CudaLoss final : public LossOps {
 public:
  explicit CudaLoss(Device& device)
      : losses_(device), most_kept_(std::min(kMostKept, most_shared_of(device) - sizeof(RowShared))) {}

  void cross_entropy(Stream& stream, const Tensor& logits, std::int64_t vocabulary, const Tensor& targets,
                     const Softcap& softcap, float scale, bool gradient, double* loss_sum) override {
    if (vocabulary < 1 || vocabulary > logits.cols) {
      throw std::logic_error("cross entropy: a vocabulary of " + std::to_string(vocabulary) + " in logits of width " +
                             std::to_string(logits.cols));
    }
    double* const losses = losses_.room<double>(logits.rows);
    with_element_type(logits.dtype, "cross entropy", [&](auto type) {
      using T = decltype(type);
      const Rows<T> p{elements<T>(logits), logits.stride, logits.cols, vocabulary,
                      targets.i32(),       losses,        softcap,     scale};
      with_pack<T>(aligned_rows({logits}), [&](auto pack) {
        if (softcap.cap > 0.0F) {
          rows<T, pack(), true>(stream, p, logits.rows, gradient);
        } else {
          rows<T, pack(), false>(stream, p, logits.rows, gradient);
        }
      });
    });
    launch<cross_entropy_sum>({dim3(1), dim3(kSumThreads), handle_of(stream)}, losses, logits.rows, loss_sum);
  }

 private:
  template <class T, int pack, bool capped>
  void rows(Stream& stream, const Rows<T>& p, std::int64_t count, bool gradient) const {
    Grid grid{dim3(static_cast<unsigned>(count)), dim3(kThreads), handle_of(stream)};
    const std::size_t row_bytes = static_cast<std::size_t>(p.vocabulary) * sizeof(T);
    if (!gradient) {
      launch<cross_entropy_rows<T, pack, capped, false, false>>(grid, p);
    } else if (row_bytes > most_kept_) {
      launch<cross_entropy_rows<T, pack, capped, true, false>>(grid, p);
    } else {
      constexpr auto kernel = &cross_entropy_rows<T, pack, capped, true, true>;
      grid.shared = row_bytes;
      if (row_bytes + sizeof(RowShared) > (48 << 10U)) allow_shared<kernel>(row_bytes);  // static memory counts too
      launch<kernel>(grid, p);
    }
  }

  Scratch losses_;
  std::size_t most_kept_;  // bytes of a row
};

}  // namespace

std::int64_t loss_scratch_bytes(const Workload& workload) {
  return workload.loss_rows * static_cast<std::int64_t>(sizeof(double));
}

std::unique_ptr<LossOps> make_loss_ops(Device& device) { return std::make_unique<CudaLoss>(device); }

}  // namespace polaron::cuda

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

// Bound by memory: each tensor is read or written once. A thread handles packs of 16 bytes; the backward kernel's
// blocks leave their share of each coefficient's gradient, which a second kernel adds up in order.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr std::int64_t kMostBlocks = 1024;
constexpr int kTerms = static_cast<int>(MixOps::kMostTerms);

template <class T>
struct Matrices {
  const T* x[kTerms];
  const float* coefficient[kTerms];
  T* out;  // of backward: d_out, which is read
  T* d_x[kTerms];
  bool accumulate[kTerms];
  float* d_coefficient[kTerms];
  std::int64_t x_stride[kTerms], d_x_stride[kTerms], out_stride;
  std::int64_t cols, packs_a_row, packs;
  double* partial;  // of backward: [blocks, kTerms]
};

__device__ __forceinline__ float value_of(const float* coefficient) {
  return coefficient == nullptr ? 1.0F : *coefficient;
}

template <class T, int pack>
__global__ void __launch_bounds__(kThreads) mix_forward(const Matrices<T> p) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.packs) return;
  const std::int64_t n = i / p.packs_a_row, c = (i - n * p.packs_a_row) * pack, count = p.cols - c;
  float sum[pack] = {};
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    if (p.x[term] == nullptr) continue;
    const float a = value_of(p.coefficient[term]);
    float x[pack];
    load(p.x[term] + n * p.x_stride[term] + c, count, x);
#pragma unroll
    for (int e = 0; e < pack; ++e) sum[e] += a * x[e];
  }
  store(p.out + n * p.out_stride + c, count, sum);
}

struct MixShared {
  double warps[kWarps * kTerms];
};

template <class T, int pack>
__global__ void __launch_bounds__(kThreads) mix_backward(const Matrices<T> p) {
  MixShared& shared = static_shared<MixShared>();
  double dots[kTerms] = {};
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.packs; i += step) {
    const std::int64_t n = i / p.packs_a_row, c = (i - n * p.packs_a_row) * pack, count = p.cols - c;
    float d[pack];
    load(p.out + n * p.out_stride + c, count, d);  // before any d_x, which may lie where d_out does
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      if (p.d_coefficient[term] != nullptr) {
        float x[pack], sum = 0.0F;
        load(p.x[term] + n * p.x_stride[term] + c, count, x);
#pragma unroll
        for (int e = 0; e < pack; ++e) sum += d[e] * x[e];
        dots[term] += static_cast<double>(sum);
      }
      if (p.d_x[term] != nullptr) {
        const float a = value_of(p.coefficient[term]);
        T* const to = p.d_x[term] + n * p.d_x_stride[term] + c;
        float result[pack] = {};
        if (p.accumulate[term]) load(to, count, result);
#pragma unroll
        for (int e = 0; e < pack; ++e) result[e] += a * d[e];
        store(to, count, result);
      }
    }
  }
  row_sums(dots, shared.warps);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) p.partial[blockIdx.x * kTerms + term] = dots[term];
  }
}

struct CoefficientGradients {
  float* to[kTerms];
};

// *to[term] += the sum over blocks, in fixed order.
__global__ void __launch_bounds__(kThreads)
    mix_coefficients(const double* partial, std::int64_t blocks, const CoefficientGradients gradients) {
  MixShared& shared = static_shared<MixShared>();
  double sums[kTerms] = {};
  for (std::int64_t block = threadIdx.x; block < blocks; block += kThreads) {
#pragma unroll
    for (int term = 0; term < kTerms; ++term) sums[term] += partial[block * kTerms + term];
  }
  row_sums(sums, shared.warps);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int term = 0; term < kTerms; ++term) {
    if (gradients.to[term] != nullptr) *gradients.to[term] += static_cast<float>(sums[term]);
  }
}

class CudaMix final : public MixOps {
 public:
  explicit CudaMix(Device& device) : partial_(device) {}

  void forward(Stream& stream, std::span<const MixTerm> terms, const Tensor& out) override {
    run(terms, {}, out, [&](auto type, auto pack, const auto& p) {
      const Grid grid{dim3(static_cast<unsigned>(ceil_div(p.packs, kThreads))), dim3(kThreads), handle_of(stream)};
      launch<mix_forward<decltype(type), pack()>>(grid, p);
    });
  }

  void backward(Stream& stream, const Tensor& d_out, std::span<const MixTerm> terms,
                std::span<const MixGradient> gradients) override {
    if (gradients.size() != terms.size()) throw std::logic_error("mix backward: a gradient for each term");
    run(terms, gradients, d_out, [&](auto type, auto pack, auto p) {
      const std::int64_t blocks = std::min<std::int64_t>(ceil_div(p.packs, kThreads), kMostBlocks);
      p.partial = partial_.room<double>(blocks * kTerms);
      const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), handle_of(stream)};
      launch<mix_backward<decltype(type), pack()>>(grid, p);
      CoefficientGradients to{};
      bool wanted = false;
      for (int term = 0; term < kTerms; ++term) {
        to.to[term] = p.d_coefficient[term];
        wanted = wanted || to.to[term] != nullptr;
      }
      if (wanted) launch<mix_coefficients>({dim3(1), dim3(kThreads), handle_of(stream)}, p.partial, blocks, to);
    });
  }

 private:
  // Calls body(type, pack, matrices).
  template <class Body>
  static void run(std::span<const MixTerm> terms, std::span<const MixGradient> gradients, const Tensor& out,
                  Body&& body) {
    if (terms.empty() || terms.size() > kMostTerms) throw std::logic_error("a mix has one or two terms");
    with_element_type(out.dtype, "mix", [&](auto type) {
      using T = decltype(type);
      Matrices<T> p{};
      bool aligned = aligned_rows({out});
      for (std::size_t i = 0; i < terms.size(); ++i) {
        const bool read = gradients.empty() || gradients[i].d_coefficient != nullptr;
        if (read) p.x[i] = elements<T>(terms[i].x);
        p.x_stride[i] = terms[i].x.stride;
        p.coefficient[i] = terms[i].coefficient;
        aligned = aligned && (!read || aligned_rows({terms[i].x}));
        if (gradients.empty()) continue;
        p.d_x[i] = elements<T>(gradients[i].d_x);
        p.d_x_stride[i] = gradients[i].d_x.stride;
        p.accumulate[i] = gradients[i].accumulate;
        p.d_coefficient[i] = gradients[i].d_coefficient;
        aligned = aligned && aligned_rows({gradients[i].d_x});
      }
      p.out = elements<T>(out);
      p.out_stride = out.stride;
      p.cols = out.cols;
      with_pack<T>(aligned, [&](auto pack) {
        p.packs_a_row = ceil_div(p.cols, static_cast<std::int64_t>(pack()));
        p.packs = p.packs_a_row * out.rows;
        body(type, pack, p);
      });
    });
  }

  Scratch partial_;
};

}  // namespace

std::int64_t mix_scratch_bytes(const Workload& workload) {
  if (!workload.mixes) return 0;
  const std::int64_t blocks = ceil_div(workload.rows() * workload.width, std::int64_t{kThreads});
  return std::min<std::int64_t>(blocks, kMostBlocks) * kTerms * static_cast<std::int64_t>(sizeof(double));
}

std::unique_ptr<MixOps> make_mix_ops(Device& device) { return std::make_unique<CudaMix>(device); }

}  // namespace polaron::cuda

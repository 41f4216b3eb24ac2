// The CUDA backend's AttentionOps: what its kernels share, and which of them a call takes.
#include "cuda/attention.h"

#include <limits>
#include <stdexcept>

#include "base/error.h"
#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 128;

// The ranges of FirstKeys, a thread each.
__global__ void __launch_bounds__(kThreads) attention_first_key_ranges(const FirstKeys first, int batch, int2* ranges) {
  const int count = first.ranges_of_sequence();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<std::int64_t>(batch) * count) return;
  const int b = static_cast<int>(i / count), t0 = static_cast<int>(i % count) * FirstKeys::kRows;
  int2 range = make_int2(first.of(b, t0), first.of(b, t0));
  for (int t = t0 + 1; t < std::min(t0 + FirstKeys::kRows, first.length); ++t) {
    const int key = first.of(b, t);
    range = make_int2(std::min(range.x, key), std::max(range.y, key));
  }
  ranges[i] = range;
}

constexpr int kDeltaLanes = 8;  // of a row of a head

// delta[b, h, t] = sum over the head of d_out * out: eight lanes a head, so that a warp reads 512 neighbouring bytes.
template <class T, int pack>
__global__ void __launch_bounds__(kThreads) attention_delta(const AttentionBackward<T> p) {
  const int heads = p.qkv.heads, length = p.qkv.length, size = p.qkv.head_size;
  const std::int64_t n = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kDeltaLanes;
  const std::int64_t row = n / heads;
  const int h = static_cast<int>(n % heads), lane = static_cast<int>(threadIdx.x % kDeltaLanes);
  const bool there = row < static_cast<std::int64_t>(p.batch) * length;
  float sum = 0.0F;
  if (there) {
    const T* const out = p.out.data + row * p.out.stride + h * size;
    const T* const d_out = p.d_out.data + row * p.d_out.stride + h * size;
    for (int c = lane * pack; c < size; c += kDeltaLanes * pack) {
      float x[pack], y[pack];
      load<Cache::stream>(out + c, x);
      load(d_out + c, y);  // read again by the kernels that follow
#pragma unroll
      for (int i = 0; i < pack; ++i) sum += x[i] * y[i];
    }
  }
#pragma unroll
  for (int offset = kDeltaLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, offset);
  if (there && lane == 0) p.delta[(row / length * heads + h) * length + row % length] = sum;
}

template <class T>
bool takes_tensor_cores(std::int64_t head_size, bool aligned) {
  return std::is_same_v<T, bf16> && head_size % 8 == 0 && head_size <= kMostTensorHead && aligned;
}

class CudaAttention final : public AttentionOps {
 public:
  explicit CudaAttention(Device& device) : ranges_(device), delta_(device) {}

  void prepare(Stream& stream, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary,
               const Tensor& qkv, const Tensor& head_rstd) override {
    attention_prepare(handle_of(stream), shape, norm, eps, rotary, qkv, head_rstd);
  }
  void prepare_backward(Stream& stream, const AttentionShape& shape, HeadNorm norm, const Rotary& rotary,
                        const Tensor& qkv, const Tensor& head_rstd, const Tensor& d_qkv) override {
    attention_prepare_backward(handle_of(stream), shape, norm, rotary, qkv, head_rstd, d_qkv);
  }

  void forward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
               const Tensor& out, const Tensor& lse) override {
    check_shape(shape);
    cudaStream_t const handle = handle_of(stream);
    with_element_type(out.dtype, "attention forward", [&](auto type) {
      using T = decltype(type);
      const AttentionForward<T> p{packed<const T>(shape, qkv),   first_keys(handle, shape, first_key),
                                  per_head<T>(shape, out),       lse.f32(),
                                  static_cast<int>(shape.batch), shape.scale};
      if constexpr (std::is_same_v<T, bf16>) {
        if (takes_tensor_cores<T>(shape.head_size, aligned_rows({qkv, out}))) {
          return attention_forward_tensor(handle, p);
        }
      }
      attention_forward_plain(handle, p);
    });
  }

  void backward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
                const Tensor& out, const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv) override {
    check_shape(shape);
    cudaStream_t const handle = handle_of(stream);
    const std::int64_t rows = shape.batch * shape.heads * shape.sequence_length;
    with_element_type(d_qkv.dtype, "attention backward", [&](auto type) {
      using T = decltype(type);
      const AttentionBackward<T> p{packed<const T>(shape, qkv),
                                   first_keys(handle, shape, first_key),
                                   per_head<const T>(shape, out),
                                   per_head<const T>(shape, d_out),
                                   lse.f32(),
                                   delta_.room<float>(rows),
                                   packed<T>(shape, d_qkv),
                                   static_cast<int>(shape.batch),
                                   shape.scale};
      with_pack<T>(aligned_rows({out, d_out}) && shape.head_size % kPack<T> == 0, [&](auto pack) {
        launch<attention_delta<T, pack()>>(
            {dim3(static_cast<unsigned>(ceil_div(rows * kDeltaLanes, std::int64_t{kThreads}))), dim3(kThreads), handle},
            p);
      });
      if constexpr (std::is_same_v<T, bf16>) {
        if (takes_tensor_cores<T>(shape.head_size, aligned_rows({qkv, d_out, d_qkv}))) {
          return attention_backward_tensor(handle, p);
        }
      }
      attention_backward_plain(handle, p);
    });
  }

 private:
  static void check_shape(const AttentionShape& shape) {
    if (shape.sequence_length > std::numeric_limits<std::int32_t>::max() / 2 || shape.batch > 65535 ||
        shape.heads > 65535) {
      throw Error(Exit::usage,
                  "attention on a CUDA device takes at most 65,535 sequences at a time, as many heads, and a billion "
                  "tokens a sequence: set training.micro_batch lower.");
    }
    if (!(shape.scale > 0.0F)) throw std::logic_error("attention: the scale of the scores must be positive");
  }

  template <class T>
  static Packed<T> packed(const AttentionShape& shape, const Tensor& tensor) {
    return {elements<std::remove_const_t<T>>(tensor), tensor.stride,
            static_cast<int>(shape.sequence_length),  static_cast<int>(shape.heads),
            static_cast<int>(shape.kv_heads),         static_cast<int>(shape.head_size)};
  }
  template <class T>
  static PerHead<T> per_head(const AttentionShape& shape, const Tensor& tensor) {
    return {elements<std::remove_const_t<T>>(tensor), tensor.stride, static_cast<int>(shape.sequence_length),
            static_cast<int>(shape.head_size)};
  }

  // first_key, summed up for every few rows so that kernels can skip blocks that no row of theirs sees.
  FirstKeys first_keys(cudaStream_t stream, const AttentionShape& shape, const Tensor& first_key) {
    const auto length = static_cast<int>(shape.sequence_length);
    FirstKeys first{elements<std::int32_t>(first_key), nullptr, length,
                    static_cast<int>(std::min<std::int64_t>(shape.window, length))};
    if (!first_key) return first;
    const std::int64_t count = shape.batch * first.ranges_of_sequence();
    int2* const ranges = ranges_.room<int2>(count);
    launch<attention_first_key_ranges>(
        {dim3(static_cast<unsigned>(ceil_div(count, std::int64_t{kThreads}))), dim3(kThreads), stream}, first,
        static_cast<int>(shape.batch), ranges);
    first.ranges = ranges;
    return first;
  }

  Scratch ranges_, delta_;
};

}  // namespace

std::int64_t attention_scratch_bytes(const Workload& workload) {
  FirstKeys first{};
  first.length = static_cast<int>(workload.sequence_length);
  const std::int64_t ranges = workload.first_keys ? workload.sequences * first.ranges_of_sequence() : 0;
  return workload.heads * workload.rows() * static_cast<std::int64_t>(sizeof(float)) +
         ranges * static_cast<std::int64_t>(sizeof(int2));
}

std::unique_ptr<AttentionOps> make_attention_ops(Device& device) { return std::make_unique<CudaAttention>(device); }

}  // namespace polaron::cuda

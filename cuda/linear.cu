#include <algorithm>
#include <stdexcept>

#include "cuda/activation.h"
#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/gemm.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 256;

// out[n, c] = bias[c] in out's type, a pack a thread. One row: the bias in that type.
template <class T, int pack>
__global__ void __launch_bounds__(kThreads)
    spread_bias(const float* bias, T* out, std::int64_t stride, std::int64_t width, std::int64_t packs_a_row,
                std::int64_t packs) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= packs) return;
  const std::int64_t n = i / packs_a_row, c = (i - n * packs_a_row) * pack;
  float values[pack];
#pragma unroll
  for (int j = 0; j < pack; ++j) values[j] = c + j < width ? bias[c + j] : 0.0F;
  store(out + n * stride + c, width - c, values);
}

// Sums of columns, in an order that depends on the shape alone: each block adds up a strip of rows, and where there are
// several strips, a second launch adds their sums. Sums are fp32.
constexpr int kSumLanes = 32, kSumRows = 8;  // threads of a block: packs of columns x rows
constexpr std::int64_t kShortestStrip = 64;  // rows
constexpr std::int64_t kMostBlocks = 1024;   // enough to fill a device; more strips are more to add afterwards
struct Strips {
  std::int64_t count, rows;  // rows of each but the last
};
Strips strips_of(std::int64_t rows, std::int64_t column_blocks) {
  const std::int64_t most = ceil_div(kMostBlocks, column_blocks);
  const std::int64_t length = ceil_div(rows, most) > kShortestStrip ? ceil_div(rows, most) : kShortestStrip;
  return {ceil_div(rows, length), length};
}

template <class T, int pack>
__global__ void __launch_bounds__(kSumLanes* kSumRows)
    sum_strips(const T* values, std::int64_t stride, std::int64_t rows, std::int64_t width, std::int64_t strip_rows,
               bool accumulate, float* sums) {
  struct Layout {
    float partial[kSumRows][kSumLanes][pack + 1];  // odd distances: no two lanes on one bank
  };
  Layout& shared = static_shared<Layout>();
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kSumLanes + threadIdx.x) * pack;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * strip_rows;
  const std::int64_t last = first + strip_rows < rows ? first + strip_rows : rows;
  float total[pack];
#pragma unroll
  for (int j = 0; j < pack; ++j) total[j] = 0.0F;
  if (c < width) {
#pragma unroll 4
    for (std::int64_t n = first + threadIdx.y; n < last; n += kSumRows) {
      float x[pack];
      load(values + n * stride + c, width - c, x);
#pragma unroll
      for (int j = 0; j < pack; ++j) total[j] += x[j];
    }
  }
#pragma unroll
  for (int j = 0; j < pack; ++j) shared.partial[threadIdx.y][threadIdx.x][j] = total[j];
  __syncthreads();
  // Every thread adds one of the block's columns, where there are as many columns as threads.
  const int thread = static_cast<int>(threadIdx.y) * kSumLanes + static_cast<int>(threadIdx.x);
  if (thread >= kSumLanes * pack) return;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kSumLanes * pack + thread;
  if (column >= width) return;
  float sum = 0.0F;
#pragma unroll
  for (int row = 0; row < kSumRows; ++row) sum += shared.partial[row][thread / pack][thread % pack];
  float* const to = sums + static_cast<std::int64_t>(blockIdx.y) * width + column;
  *to = accumulate ? *to + sum : sum;
}

Grid flat_grid(Stream& stream, std::int64_t threads) {
  return {dim3(static_cast<unsigned>(ceil_div(threads, kThreads))), dim3(kThreads), handle_of(stream)};
}

Grid sum_grid(Stream& stream, std::int64_t blocks, std::int64_t strips) {
  return {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(strips)), dim3(kSumLanes, kSumRows),
          handle_of(stream)};
}

// c = a b. Transposes are those of what is stored.
GemmCall product(const GemmMatrix& a, const GemmMatrix& b, std::int64_t depth, const Tensor& c) {
  GemmCall call;
  call.m = c.rows;
  call.n = c.cols;
  call.k = depth;
  call.a = a;
  call.b = b;
  call.c = c.data;
  call.c_dtype = c.dtype;
  call.c_stride = c.stride;
  call.tf32 = true;
  return call;
}
GemmCall input_gradient(const Tensor& d_out, const Tensor& weight, const Tensor& d_x) {
  return product(GemmMatrix(d_out), GemmMatrix(weight), weight.rows, d_x);
}

// Rows of a chunk of gradients of activated values, at most.
std::int64_t rows_of_chunk(std::int64_t chunk_bytes, std::int64_t row_bytes) {
  constexpr std::int64_t kTile = 256;  // chunks of whole tiles of the product
  const std::int64_t fitting = chunk_bytes / row_bytes, whole = fitting / kTile * kTile;
  return whole > 0 ? whole : fitting > 0 ? fitting : 1;
}

// Where the library's kernels really have GELU in their epilogue, for bf16. Elsewhere it is reported to be slower there
// than in a kernel of its own: sm_80 and sm_89 by llm.c, sm_120 by sglang.
bool has_fast_gelu(int architecture) { return architecture >= 90 && architecture < 120; }

class CudaLinearOps final : public LinearOps {
 public:
  CudaLinearOps(Device& device, Gemm& gemm, std::int64_t chunk_bytes)
      : gemm_(gemm),
        has_fast_gelu_(has_fast_gelu(architecture_of(device))),
        chunk_bytes_(chunk_bytes),
        bias_(device),
        sums_(device),
        chunk_(device) {}

  void forward(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
               const Tensor& out, const Tensor& activated) override {
    if (out.dtype != x.dtype) throw std::logic_error("linear forward: the output has the type of the input");
    GemmCall call = product(GemmMatrix(x), GemmMatrix(weight, true), x.cols, out);
    if (out.rows == 0) return;
    if (bias) {
      call.bias = as_type_of(stream, bias, out);
      call.epilogue = GemmEpilogue::bias;
    }
    if (fuses_gelu(activation, out)) {
      GemmCall fused = call;
      fused.epilogue = bias ? GemmEpilogue::gelu_aux_bias : GemmEpilogue::gelu_aux;
      fused.c = activated.data;
      fused.c_stride = activated.stride;
      fused.aux = out.data;
      fused.aux_stride = out.stride;
      if (gemm_.attempt(stream, fused)) return;
    }
    if (!bias) {
      gemm_(stream, call);
    } else if (!gemm_.attempt(stream, call)) {  // the same sums: the bias is there first, and the product is added
      call.epilogue = GemmEpilogue::none;
      call.beta = 1.0F;
      spread(stream, bias, out);
      gemm_(stream, call);
    }
    if (activation != Activation::none) cuda::activate(stream, activation, out, activated);
  }

  void backward_input(Stream& stream, const Tensor& d_out, const Tensor& weight, const Tensor& d_x,
                      bool accumulate) override {
    GemmCall call = input_gradient(d_out, weight, d_x);
    call.beta = accumulate ? 1.0F : 0.0F;
    gemm_(stream, call);
  }

  void backward_input_activation(Stream& stream, const Tensor& d_out, const Tensor& weight, Activation activation,
                                 const Tensor& pre, const Tensor& d_pre, const Tensor& scratch) override {
    if (activation == Activation::none) return backward_input(stream, d_out, weight, d_pre, false);
    if (d_pre.rows == 0) return;
    const bool in_place = pre.data == d_pre.data, gated = activation == Activation::swiglu;
    if (gated || (in_place && scratch)) {
      if (!scratch) throw std::logic_error("backward of swiglu needs scratch");
      return through(stream, d_out, weight, activation, pre, d_pre, scratch);
    }
    if (in_place) return in_chunks(stream, d_out, weight, activation, pre);
    if (fuses_gelu(activation, pre)) {
      GemmCall fused = input_gradient(d_out, weight, d_pre);
      fused.epilogue = GemmEpilogue::dgelu;
      fused.aux = pre.data;
      fused.aux_stride = pre.stride;
      if (gemm_.attempt(stream, fused)) return;
    }
    through(stream, d_out, weight, activation, pre, d_pre, d_pre);
  }

  void backward_weight(Stream& stream, const Tensor& d_out, const Tensor& x, const Tensor& weight_grad,
                       const Tensor& bias_grad, bool accumulate) override {
    if (weight_grad.dtype != DType::f32) throw std::logic_error("gradients of weights are fp32");
    GemmCall call = product(GemmMatrix(d_out, true), GemmMatrix(x), d_out.rows, weight_grad);
    call.beta = accumulate ? 1.0F : 0.0F;
    gemm_(stream, call);
    if (bias_grad) sum_columns(stream, d_out, bias_grad, accumulate);
  }

  void activate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& activated) override {
    cuda::activate(stream, activation, pre, activated);
  }

 private:
  // Whether GELU goes into the epilogue: the library asks that of the matrix in which it keeps or reads the
  // pre-activation. Only of bf16: what the library's GELU is good to is not documented, and fp32 is for comparing.
  bool fuses_gelu(Activation activation, const Tensor& pre) const {
    return has_fast_gelu_ && pre.dtype == DType::bf16 && activation == Activation::gelu_tanh && pre.stride % 8 == 0;
  }

  // bias [1, width] rounded to the type of `like`, as the library adds it.
  const void* as_type_of(Stream& stream, const Tensor& bias, const Tensor& like) {
    if (like.dtype == DType::f32) return bias.f32();
    const Tensor rounded(bias_.room<bf16>(bias.cols), DType::bf16, 1, bias.cols);
    spread(stream, bias, rounded);
    return rounded.data;
  }

  static void spread(Stream& stream, const Tensor& bias, const Tensor& out) {
    with_element_type(out.dtype, "linear forward", [&](auto type) {
      using T = decltype(type);
      with_pack<T>(aligned_rows({out}), [&](auto pack) {
        const std::int64_t packs_a_row = ceil_div(out.cols, pack()), packs = packs_a_row * out.rows;
        launch<spread_bias<T, pack()>>(flat_grid(stream, packs), bias.f32(), elements<T>(out), out.stride, out.cols,
                                       packs_a_row, packs);
      });
    });
  }

  // The gradient of the activated values goes through `gradient` [N, H], which may be d_pre.
  void through(Stream& stream, const Tensor& d_out, const Tensor& weight, Activation activation, const Tensor& pre,
               const Tensor& d_pre, const Tensor& gradient) {
    gemm_(stream, input_gradient(d_out, weight, gradient));
    differentiate(stream, activation, pre, gradient, d_pre);
  }

  // pre turns into its gradient, a few rows at a time: the gradient of the activated values of these rows is still in
  // the device's cache when it is read again. (The library does not say whether the matrix that the derivative of GELU
  // is taken at may be the result's.)
  void in_chunks(Stream& stream, const Tensor& d_out, const Tensor& weight, Activation activation, const Tensor& pre) {
    const std::int64_t row_bytes = static_cast<std::int64_t>(static_cast<std::size_t>(pre.cols) * size_of(pre.dtype));
    const std::int64_t chunk = rows_of_chunk(chunk_bytes_, row_bytes);
    void* const memory = chunk_.room<std::byte>((pre.rows < chunk ? pre.rows : chunk) * row_bytes);
    for (std::int64_t row = 0; row < pre.rows; row += chunk) {
      const std::int64_t rows = pre.rows - row < chunk ? pre.rows - row : chunk;
      const Tensor part = pre.row_range(row, rows);
      through(stream, d_out.row_range(row, rows), weight, activation, part, part,
              Tensor(memory, pre.dtype, rows, pre.cols));
    }
  }

  void sum_columns(Stream& stream, const Tensor& d_out, const Tensor& bias_grad, bool accumulate) {
    with_element_type(d_out.dtype, "linear backward", [&](auto type) {
      using T = decltype(type);
      with_pack<T>(aligned_rows({d_out}), [&](auto pack) {
        const std::int64_t width = d_out.cols, blocks = ceil_div(width, kSumLanes * pack());
        const Strips strips = strips_of(d_out.rows, blocks);
        const bool one = strips.count == 1;
        float* const sums = one ? bias_grad.f32() : sums_.room<float>(strips.count * width);
        launch<sum_strips<T, pack()>>(sum_grid(stream, blocks, strips.count), elements<T>(d_out), d_out.stride,
                                      d_out.rows, width, strips.rows, one && accumulate, sums);
        if (one) return;
        launch<sum_strips<float, 1>>(sum_grid(stream, ceil_div(width, kSumLanes), 1), sums, width, strips.count, width,
                                     strips.count, accumulate, bias_grad.f32());
      });
    });
  }

  Gemm& gemm_;
  bool has_fast_gelu_;
  std::int64_t chunk_bytes_;
  Scratch bias_, sums_, chunk_;
};

}  // namespace

std::int64_t linear_scratch_bytes(const Workload& workload, std::int64_t chunk_bytes) {
  const bool low = workload.dtype == DType::bf16;
  const std::int64_t pack = low ? kPack<bf16> : kPack<float>;
  std::int64_t rounded = 0, sums = 0, chunk = 0;
  for (const std::int64_t width : workload.biased) {
    if (low) rounded = std::max(rounded, width * 2);
    const Strips strips = strips_of(workload.rows(), ceil_div(width, kSumLanes * pack));
    if (strips.count > 1) sums = std::max(sums, strips.count * width * 4);
  }
  if (workload.activated_in_place > 0) {
    const std::int64_t row_bytes = workload.activated_in_place * (low ? 2 : 4);
    chunk = std::min(workload.rows(), rows_of_chunk(chunk_bytes, row_bytes)) * row_bytes;
  }
  return rounded + sums + chunk;
}

std::unique_ptr<LinearOps> make_linear_ops(Device& device, Gemm& gemm, std::int64_t chunk_bytes) {
  return std::make_unique<CudaLinearOps>(device, gemm, chunk_bytes);
}

}  // namespace polaron::cuda

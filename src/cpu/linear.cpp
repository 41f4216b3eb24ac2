#include "cpu/linear.h"

#include <stdexcept>

#include "cpu/activation.h"
#include "cpu/blas.h"
#include "cpu/families.h"
#include "cpu/gemm_tile.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

constexpr int64_t kLineFloats = 16;

// A block of a matrix as memory that will be needed.
Region block_region(const float* first, int64_t stride, int64_t rows, int64_t cols) {
  return {first, cols / kLineFloats + 1, rows, stride};
}

class ForwardEpilogue final : public GemmEpilogue {
 public:
  // bias and activated may be null.
  ForwardEpilogue(const float* bias, int64_t half, Activation activation, float* activated, int64_t stride)
      : bias_(bias), half_(half), activation_(activation), activated_(activated), stride_(stride) {}

  void apply(const GemmBlock& block) const override {
    if (bias_ != nullptr) {
      add_bias(block.rows, block.cols, bias_ + block.col, block.values, block.stride);
      if (block.second != nullptr) {
        add_bias(block.rows, block.cols, bias_ + half_ + block.col, block.second, block.stride);
      }
    }
    if (activated_ == nullptr) return;
    activate_block(activation_, {block.rows, block.cols, block.values, block.second, block.stride},
                   activated_ + block.row * stride_ + block.col, stride_);
  }

  void ahead(int64_t row, int64_t rows, int64_t col, int64_t cols, Ahead& ahead) const override {
    if (activated_ == nullptr || (activation_ == Activation::swiglu && col >= half_)) return;
    ahead.add(block_region(activated_ + row * stride_ + col, stride_, rows, cols));
  }

 private:
  const float* bias_;
  int64_t half_;
  Activation activation_;
  float* activated_;
  int64_t stride_;
};

class DerivativeEpilogue final : public GemmEpilogue {
 public:
  // half: the column where swiglu's up begins, 0 for other activations.
  DerivativeEpilogue(Activation activation, const float* pre, int64_t pre_stride, float* d_pre, int64_t d_pre_stride,
                     int64_t half)
      : activation_(activation),
        pre_(pre),
        pre_stride_(pre_stride),
        d_pre_(d_pre),
        d_pre_stride_(d_pre_stride),
        half_(half) {}

  void apply(const GemmBlock& block) const override {
    const float* pre = pre_ + block.row * pre_stride_ + block.col;
    float* d_pre = d_pre_ + block.row * d_pre_stride_ + block.col;
    differentiate_block(activation_, {block.rows, block.cols, pre, half_ > 0 ? pre + half_ : nullptr, pre_stride_},
                        block.values, block.stride, d_pre, half_ > 0 ? d_pre + half_ : nullptr, d_pre_stride_);
  }

  void ahead(int64_t row, int64_t rows, int64_t col, int64_t cols, Ahead& ahead) const override {
    const float* pre = pre_ + row * pre_stride_ + col;
    const float* d_pre = d_pre_ + row * d_pre_stride_ + col;
    ahead.add(block_region(pre, pre_stride_, rows, cols));
    if (d_pre != pre) ahead.add(block_region(d_pre, d_pre_stride_, rows, cols));
    if (half_ == 0) return;
    ahead.add(block_region(pre + half_, pre_stride_, rows, cols));
    if (d_pre != pre) ahead.add(block_region(d_pre + half_, d_pre_stride_, rows, cols));
  }

 private:
  Activation activation_;
  const float* pre_;
  int64_t pre_stride_;
  float* d_pre_;
  int64_t d_pre_stride_;
  int64_t half_;
};

class CpuLinearOps final : public LinearOps {
 public:
  explicit CpuLinearOps(GemmEngine engine) : gemm_(engine) {}

  void forward(Stream&, const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
               const Tensor& out, const Tensor& activated) override {
    GemmArgs args;
    args.m = out.rows;
    args.n = out.cols;
    args.k = x.cols;
    args.a = x.f32();
    args.lda = x.stride;
    args.b = weight.f32();
    args.ldb = weight.stride;
    args.b_transposed = true;
    args.c = out.f32();
    args.ldc = out.stride;
    args.halves = activation == Activation::swiglu;
    const bool activates = activation != Activation::none;
    if (!bias && !activates) return gemm_(args);
    const ForwardEpilogue epilogue(bias ? bias.f32() : nullptr, out.cols / 2, activation,
                                   activates ? activated.f32() : nullptr, activated.stride);
    gemm_(args, &epilogue);
  }

  void backward_input(Stream&, const Tensor& d_out, const Tensor& weight, const Tensor& d_x, bool accumulate) override {
    GemmArgs args = input_gradient(d_out, weight);
    args.c = d_x.f32();
    args.ldc = d_x.stride;
    args.accumulate = accumulate;
    gemm_(args);
  }

  void backward_input_activation(Stream& stream, const Tensor& d_out, const Tensor& weight, Activation activation,
                                 const Tensor& pre, const Tensor& d_pre, const Tensor&) override {
    if (activation == Activation::none) return backward_input(stream, d_out, weight, d_pre, false);
    const DerivativeEpilogue epilogue(activation, pre.f32(), pre.stride, d_pre.f32(), d_pre.stride,
                                      activation == Activation::swiglu ? weight.cols : 0);
    gemm_(input_gradient(d_out, weight), &epilogue);
  }

  void backward_weight(Stream&, const Tensor& d_out, const Tensor& x, const Tensor& weight_grad,
                       const Tensor& bias_grad, bool accumulate) override {
    GemmArgs args;
    args.m = d_out.cols;
    args.n = x.cols;
    args.k = d_out.rows;
    args.a = d_out.f32();
    args.lda = d_out.stride;
    args.a_transposed = true;
    args.b = x.f32();
    args.ldb = x.stride;
    args.c = weight_grad.f32();
    args.ldc = weight_grad.stride;
    args.accumulate = accumulate;
    args.a_sums = bias_grad ? bias_grad.f32() : nullptr;
    gemm_(args);
  }

  void activate(Stream&, Activation activation, const Tensor& pre, const Tensor& activated) override {
    const float* from = pre.f32();
    float* to = activated.f32();
    const int64_t cols = activated.cols, half = activation == Activation::swiglu ? cols : 0;
    if (activation == Activation::none) throw std::logic_error("activate: there is no activation");
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < activated.rows; ++r) {
      const float* row = from + r * pre.stride;
      activate_block(activation, {1, cols, row, half > 0 ? row + half : nullptr, pre.stride}, to + r * activated.stride,
                     activated.stride);
    }
  }

 private:
  // d_out weight, [N, in], not stored.
  static GemmArgs input_gradient(const Tensor& d_out, const Tensor& weight) {
    GemmArgs args;
    args.m = d_out.rows;
    args.n = weight.cols;
    args.k = weight.rows;
    args.a = d_out.f32();
    args.lda = d_out.stride;
    args.b = weight.f32();
    args.ldb = weight.stride;
    return args;
  }

  Gemm gemm_;
};

}  // namespace

std::unique_ptr<LinearOps> make_linear_ops(GemmEngine engine) { return std::make_unique<CpuLinearOps>(engine); }

std::unique_ptr<LinearOps> make_linear_ops() {
  select_blas_kernels();
  return make_linear_ops(default_gemm_engine());
}

}  // namespace polaron::cpu

#include "cpu/linear.h"

#include <stdexcept>

#include "cpu/activation.h"
#include "cpu/blas.h"
#include "cpu/families.h"
#include "cpu/gemm_tile.h"
#include "cpu/linear_bf16.h"

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

// The operands and the result of a product, of either type.
void set_operands(GemmArgs& args, const Tensor& a, const Tensor& b) {
  args.a = a.f32();
  args.b = b.f32();
}
void set_operands(Bf16GemmArgs& args, const Tensor& a, const Tensor& b) {
  args.a = a.bf16();
  args.b = b.bf16();
}
void set_result(GemmArgs& args, const Tensor& c) {
  args.c = c.f32();
  args.ldc = c.stride;
}
void set_result(Bf16GemmArgs& args, const Tensor& c) {
  if (c.dtype == DType::f32) {
    args.c = c.f32();
  } else {
    args.c_bf16 = c.bf16();
  }
  args.ldc = c.stride;
}

// x weight^T.
template <class Args>
Args outputs(const Tensor& x, const Tensor& weight, const Tensor& out) {
  Args args;
  args.m = out.rows;
  args.n = out.cols;
  args.k = x.cols;
  args.lda = x.stride;
  args.ldb = weight.stride;
  args.b_transposed = true;
  set_operands(args, x, weight);
  set_result(args, out);
  return args;
}

// d_out weight, [N, in], not stored.
template <class Args>
Args input_gradient(const Tensor& d_out, const Tensor& weight) {
  Args args;
  args.m = d_out.rows;
  args.n = weight.cols;
  args.k = weight.rows;
  args.lda = d_out.stride;
  args.ldb = weight.stride;
  set_operands(args, d_out, weight);
  return args;
}

// d_out^T x, and the sums of d_out.
template <class Args>
Args weight_gradient(const Tensor& d_out, const Tensor& x, const Tensor& weight_grad, const Tensor& bias_grad,
                     bool accumulate) {
  Args args;
  args.m = d_out.cols;
  args.n = x.cols;
  args.k = d_out.rows;
  args.lda = d_out.stride;
  args.a_transposed = true;
  args.ldb = x.stride;
  args.accumulate = accumulate;
  args.a_sums = bias_grad ? bias_grad.f32() : nullptr;
  set_operands(args, d_out, x);
  args.c = weight_grad.f32();
  args.ldc = weight_grad.stride;
  return args;
}

bool is_bf16(const Tensor& tensor) { return tensor.dtype == DType::bf16; }

class CpuLinearOps final : public LinearOps {
 public:
  CpuLinearOps(GemmEngine engine, const BlockUnit& unit) : gemm_(engine, unit) {}

  void forward(Stream&, const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
               const Tensor& out, const Tensor& activated) override {
    const bool activates = activation != Activation::none;
    const float* const added = bias ? bias.f32() : nullptr;
    if (is_bf16(x)) {
      Bf16GemmArgs args = outputs<Bf16GemmArgs>(x, weight, out);
      if (args.c != nullptr) throw std::logic_error("linear forward: the output of bf16 operands is bf16");
      args.halves = activation == Activation::swiglu;
      if (!bias && !activates) return gemm_(args);
      const Bf16ForwardEpilogue epilogue(added, out.cols / 2, activation, activates ? activated.bf16() : nullptr,
                                         activated.stride);
      return gemm_(args, &epilogue);
    }
    GemmArgs args = outputs<GemmArgs>(x, weight, out);
    args.halves = activation == Activation::swiglu;
    if (!bias && !activates) return gemm_(args);
    const ForwardEpilogue epilogue(added, out.cols / 2, activation, activates ? activated.f32() : nullptr,
                                   activated.stride);
    gemm_(args, &epilogue);
  }

  void backward_input(Stream&, const Tensor& d_out, const Tensor& weight, const Tensor& d_x, bool accumulate) override {
    const auto multiply = [&](auto args) {
      set_result(args, d_x);
      args.accumulate = accumulate;
      gemm_(args);
    };
    if (is_bf16(d_out)) return multiply(input_gradient<Bf16GemmArgs>(d_out, weight));
    multiply(input_gradient<GemmArgs>(d_out, weight));
  }

  void backward_input_activation(Stream& stream, const Tensor& d_out, const Tensor& weight, Activation activation,
                                 const Tensor& pre, const Tensor& d_pre, const Tensor&) override {
    if (activation == Activation::none) return backward_input(stream, d_out, weight, d_pre, false);
    const int64_t half = activation == Activation::swiglu ? weight.cols : 0;
    if (is_bf16(d_out)) {
      const Bf16DerivativeEpilogue epilogue(activation, pre.bf16(), pre.stride, d_pre.bf16(), d_pre.stride, half);
      return gemm_(input_gradient<Bf16GemmArgs>(d_out, weight), &epilogue);
    }
    const DerivativeEpilogue epilogue(activation, pre.f32(), pre.stride, d_pre.f32(), d_pre.stride, half);
    gemm_(input_gradient<GemmArgs>(d_out, weight), &epilogue);
  }

  void backward_weight(Stream&, const Tensor& d_out, const Tensor& x, const Tensor& weight_grad,
                       const Tensor& bias_grad, bool accumulate) override {
    if (is_bf16(d_out)) return gemm_(weight_gradient<Bf16GemmArgs>(d_out, x, weight_grad, bias_grad, accumulate));
    gemm_(weight_gradient<GemmArgs>(d_out, x, weight_grad, bias_grad, accumulate));
  }

  void activate(Stream&, Activation activation, const Tensor& pre, const Tensor& activated) override {
    const int64_t cols = activated.cols, half = activation == Activation::swiglu ? cols : 0;
    if (activation == Activation::none) throw std::logic_error("activate: there is no activation");
    const auto rows = [&](const auto* from, auto* to) {
#pragma omp parallel for schedule(static)
      for (int64_t r = 0; r < activated.rows; ++r) {
        const auto* row = from + r * pre.stride;
        activate_row(activation, cols, row, half > 0 ? row + half : nullptr, to + r * activated.stride);
      }
    };
    if (is_bf16(pre)) return rows(pre.bf16(), activated.bf16());
    rows(pre.f32(), activated.f32());
  }

 private:
  static void activate_row(Activation activation, int64_t cols, const float* pre, const float* up, float* to) {
    activate_block(activation, {1, cols, pre, up, cols}, to, cols);
  }
  static void activate_row(Activation activation, int64_t cols, const bf16* pre, const bf16* up, bf16* to) {
    activate_bf16_row(activation, cols, pre, up, to);
  }

  Gemm gemm_;
};

}  // namespace

std::unique_ptr<LinearOps> make_linear_ops(GemmEngine engine, const BlockUnit& unit) {
  return std::make_unique<CpuLinearOps>(engine, unit);
}

std::unique_ptr<LinearOps> make_linear_ops() {
  select_blas_kernels();
  return make_linear_ops(default_gemm_engine());
}

}  // namespace polaron::cpu

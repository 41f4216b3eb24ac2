#include "train/profile.h"

#include <chrono>
#include <utility>

namespace polaron {
namespace {

double bytes_of(const Tensor& t) {
  return t ? static_cast<double>(t.elements()) * static_cast<double>(size_of(t.dtype)) : 0.0;
}

template <class... Tensors>
double bytes_of(const Tensor& first, const Tensors&... others) {
  return bytes_of(first) + (0.0 + ... + bytes_of(others));
}

double gemm_flops(const Tensor& rows, const Tensor& weight) {
  return 2.0 * static_cast<double>(rows.rows) * static_cast<double>(weight.rows) * static_cast<double>(weight.cols);
}

class Recorder {
 public:
  explicit Recorder(Profile& profile) : profile_(profile) {}
  template <class Op>
  void operator()(const char* name, Stream& stream, double flops, double bytes, Op op) const {
    const auto start = std::chrono::steady_clock::now();
    op();
    stream.synchronize();
    OpProfile& entry = profile_[name];
    entry.calls += 1;
    entry.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    entry.flops += flops;
    entry.bytes += bytes;
  }

 private:
  Profile& profile_;
};

class ProfiledEmbedding final : public EmbeddingOps {
 public:
  ProfiledEmbedding(EmbeddingOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void forward(Stream& stream, const Tensor& tokens, const Tensor& token_table, const Tensor& position_table,
               std::int64_t length, const Tensor& out) override {
    record_("embedding forward", stream, 0, 2 * bytes_of(out),
            [&] { inner_.forward(stream, tokens, token_table, position_table, length, out); });
  }
  void backward(Stream& stream, const Tensor& tokens, const Tensor& d_out, std::int64_t length,
                const Tensor& token_grad, const Tensor& position_grad) override {
    record_("embedding backward", stream, 0, 3 * bytes_of(d_out),
            [&] { inner_.backward(stream, tokens, d_out, length, token_grad, position_grad); });
  }

 private:
  EmbeddingOps& inner_;
  Recorder record_;
};

class ProfiledNorm final : public NormOps {
 public:
  ProfiledNorm(NormOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void forward(Stream& stream, NormKind kind, float eps, const Tensor& residual_in, const Tensor& delta,
               const Tensor& weight, const Tensor& bias, const Tensor& residual_out, const Tensor& normed,
               const Tensor& mean, const Tensor& rstd) override {
    const double bytes = bytes_of(residual_in, delta, normed) + (delta ? bytes_of(residual_out) : 0.0);
    record_("residual + norm forward", stream, 0, bytes, [&] {
      inner_.forward(stream, kind, eps, residual_in, delta, weight, bias, residual_out, normed, mean, rstd);
    });
  }
  void backward(Stream& stream, NormKind kind, const Tensor& d_normed, const Tensor& residual, const Tensor& weight,
                const Tensor& mean, const Tensor& rstd, const Tensor& d_residual, const Tensor& weight_grad,
                const Tensor& bias_grad) override {
    record_("norm backward", stream, 0, bytes_of(d_normed, residual) + 2 * bytes_of(d_residual), [&] {
      inner_.backward(stream, kind, d_normed, residual, weight, mean, rstd, d_residual, weight_grad, bias_grad);
    });
  }

 private:
  NormOps& inner_;
  Recorder record_;
};

// The head is told from the other layers by its size: more rows than 8 times its columns. With a small vocabulary its
// time counts as linear.
bool is_head(const Tensor& weight) { return weight.rows > 8 * weight.cols; }

class ProfiledLinear final : public LinearOps {
 public:
  ProfiledLinear(LinearOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void forward(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
               const Tensor& out, const Tensor& activated) override {
    record_(is_head(weight) ? "head forward" : "linear forward", stream, gemm_flops(x, weight),
            bytes_of(x, weight, out, activated),
            [&] { inner_.forward(stream, x, weight, bias, activation, out, activated); });
  }
  void backward_input(Stream& stream, const Tensor& d_out, const Tensor& weight, const Tensor& d_x,
                      bool accumulate) override {
    record_(is_head(weight) ? "head backward, input" : "linear backward, input", stream, gemm_flops(d_out, weight),
            bytes_of(d_out, weight, d_x), [&] { inner_.backward_input(stream, d_out, weight, d_x, accumulate); });
  }
  void backward_input_activation(Stream& stream, const Tensor& d_out, const Tensor& weight, Activation activation,
                                 const Tensor& pre, const Tensor& d_pre, const Tensor& scratch) override {
    record_("linear backward, input", stream, gemm_flops(d_out, weight), bytes_of(d_out, weight, pre, d_pre),
            [&] { inner_.backward_input_activation(stream, d_out, weight, activation, pre, d_pre, scratch); });
  }
  void backward_weight(Stream& stream, const Tensor& d_out, const Tensor& x, const Tensor& weight_grad,
                       const Tensor& bias_grad, bool accumulate) override {
    record_(is_head(weight_grad) ? "head backward, weight" : "linear backward, weight", stream,
            gemm_flops(x, weight_grad), bytes_of(d_out, x, weight_grad) + (accumulate ? bytes_of(weight_grad) : 0.0),
            [&] { inner_.backward_weight(stream, d_out, x, weight_grad, bias_grad, accumulate); });
  }
  void activate(Stream& stream, Activation activation, const Tensor& pre, const Tensor& activated) override {
    record_("activation", stream, 0, bytes_of(pre, activated),
            [&] { inner_.activate(stream, activation, pre, activated); });
  }

 private:
  LinearOps& inner_;
  Recorder record_;
};

class ProfiledMix final : public MixOps {
 public:
  ProfiledMix(MixOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void forward(Stream& stream, std::span<const MixTerm> terms, const Tensor& out) override {
    double bytes = bytes_of(out);
    for (const MixTerm& term : terms) bytes += bytes_of(term.x);
    record_("mix", stream, 0, bytes, [&] { inner_.forward(stream, terms, out); });
  }
  void backward(Stream& stream, const Tensor& d_out, std::span<const MixTerm> terms,
                std::span<const MixGradient> gradients) override {
    double bytes = bytes_of(d_out);
    for (std::size_t i = 0; i < terms.size(); ++i) {
      if (gradients[i].d_coefficient != nullptr) bytes += bytes_of(terms[i].x);
      bytes += (gradients[i].accumulate ? 2 : 1) * bytes_of(gradients[i].d_x);
    }
    record_("mix backward", stream, 0, bytes, [&] { inner_.backward(stream, d_out, terms, gradients); });
  }

 private:
  MixOps& inner_;
  Recorder record_;
};

class ProfiledAttention final : public AttentionOps {
 public:
  ProfiledAttention(AttentionOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void prepare(Stream& stream, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary,
               const Tensor& qkv, const Tensor& head_rstd) override {
    record_("rotary, QK norm", stream, 0, 2 * bytes_of(qkv),
            [&] { inner_.prepare(stream, shape, norm, eps, rotary, qkv, head_rstd); });
  }
  void prepare_backward(Stream& stream, const AttentionShape& shape, HeadNorm norm, const Rotary& rotary,
                        const Tensor& qkv, const Tensor& head_rstd, const Tensor& d_qkv) override {
    record_("rotary, QK norm", stream, 0, 2 * bytes_of(d_qkv),
            [&] { inner_.prepare_backward(stream, shape, norm, rotary, qkv, head_rstd, d_qkv); });
  }
  void forward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
               const Tensor& out, const Tensor& lse) override {
    record_("attention forward", stream, causal_flops(shape, 2), bytes_of(qkv, out),
            [&] { inner_.forward(stream, shape, qkv, first_key, out, lse); });
  }
  void backward(Stream& stream, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
                const Tensor& out, const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv) override {
    record_("attention backward", stream, causal_flops(shape, 5), bytes_of(qkv, out, d_out, d_qkv),
            [&] { inner_.backward(stream, shape, qkv, first_key, out, lse, d_out, d_qkv); });
  }

 private:
  // `products` matrix products of T x T x head_size a head, half of each below the diagonal.
  static double causal_flops(const AttentionShape& s, int products) {
    const double square = static_cast<double>(s.sequence_length) * static_cast<double>(s.sequence_length + 1) / 2;
    return products * 2.0 * square * static_cast<double>(s.batch * s.heads * s.head_size);
  }
  AttentionOps& inner_;
  Recorder record_;
};

class ProfiledLoss final : public LossOps {
 public:
  ProfiledLoss(LossOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void cross_entropy(Stream& stream, const Tensor& logits, std::int64_t vocabulary, const Tensor& targets,
                     const Softcap& softcap, float scale, bool gradient, double* loss_sum) override {
    record_("cross-entropy", stream, 0, 2 * bytes_of(logits),
            [&] { inner_.cross_entropy(stream, logits, vocabulary, targets, softcap, scale, gradient, loss_sum); });
  }

 private:
  LossOps& inner_;
  Recorder record_;
};

class ProfiledElementwise final : public ElementwiseOps {
 public:
  ProfiledElementwise(ElementwiseOps& inner, Recorder record) : inner_(inner), record_(record) {}
  void adamw(Stream& stream, std::span<const AdamWRange> ranges, const StepGate& gate) override {
    double elements = 0;
    for (const AdamWRange& range : ranges) elements += static_cast<double>(range.n);
    record_("AdamW", stream, 0, 28 * elements, [&] { inner_.adamw(stream, ranges, gate); });
  }
  void sgd(Stream& stream, std::span<const SgdRange> ranges, const StepGate& gate) override {
    double elements = 0;
    for (const SgdRange& range : ranges) elements += static_cast<double>(range.n);
    record_("SGD", stream, 0, 20 * elements, [&] { inner_.sgd(stream, ranges, gate); });
  }
  void scale(Stream& stream, float* values, std::int64_t n, float factor) override {
    record_("scale", stream, 0, 8.0 * static_cast<double>(n), [&] { inner_.scale(stream, values, n, factor); });
  }
  void round(Stream& stream, const float* from, bf16* to, std::int64_t n) override {
    record_("round to bf16", stream, 0, 6.0 * static_cast<double>(n), [&] { inner_.round(stream, from, to, n); });
  }
  void sum_of_squares(Stream& stream, std::span<const std::span<const float>> ranges, double* sum) override {
    double elements = 0;
    for (const std::span<const float>& range : ranges) elements += static_cast<double>(range.size());
    record_("gradient norm", stream, 2 * elements, 4 * elements, [&] { inner_.sum_of_squares(stream, ranges, sum); });
  }
  void decide(Stream& stream, const double* sum_of_squares, const double* loss_sum, double loss_scale, float max_norm,
              double loss_limit, float* norm, float* clip, std::int32_t* apply) override {
    inner_.decide(stream, sum_of_squares, loss_sum, loss_scale, max_norm, loss_limit, norm, clip, apply);
  }

 private:
  ElementwiseOps& inner_;
  Recorder record_;
};

double elements_of(std::span<const MatrixView> matrices) {
  double sum = 0;
  for (const MatrixView& matrix : matrices) sum += static_cast<double>(matrix.rows * matrix.cols);
  return sum;
}
double elements_of(const StackShape& shape) { return static_cast<double>(shape.count * shape.rows * shape.cols); }

class ProfiledMatrix final : public MatrixOps {
 public:
  ProfiledMatrix(MatrixOps& inner, Recorder record) : inner_(inner), record_(record) {}
  std::int64_t preferred_group(std::int64_t rows, std::int64_t cols) const override {
    return inner_.preferred_group(rows, cols);
  }
  void momentum_to_stack(Stream& stream, const MomentumRule& rule, const StepGate& gate,
                         std::span<const MatrixView> gradients, std::span<float* const> momentum,
                         float* stack) override {
    record_("momentum to stack", stream, 0, 16 * elements_of(gradients),
            [&] { inner_.momentum_to_stack(stream, rule, gate, gradients, momentum, stack); });
  }
  void newton_schulz(Stream& stream, const StackShape& shape, const NewtonSchulzSpec& spec, float* stack,
                     float* scratch) override {
    const double step = 4.0 * elements_of(shape) * static_cast<double>(shape.rows) +
                        2.0 * static_cast<double>(shape.count * shape.rows * shape.rows * shape.rows);
    record_("Newton-Schulz", stream, spec.steps * step, 8 * elements_of(shape),
            [&] { inner_.newton_schulz(stream, shape, spec, stack, scratch); });
  }
  std::int64_t newton_schulz_scratch(const StackShape& shape, DType dtype) const override {
    return inner_.newton_schulz_scratch(shape, dtype);
  }
  void exact_polar(Stream& stream, const StackShape& shape, float* stack) override {
    record_("exact polar factor", stream, 0, 8 * elements_of(shape), [&] { inner_.exact_polar(stream, shape, stack); });
  }
  void sketch(Stream& stream, const StackShape& shape, std::int64_t rank, Sketch kind, int power,
              std::span<const PhiloxKey> keys, const float* stack, float* sketch) override {
    const double products = (kind == Sketch::gaussian ? 1.0 : 0.0) + 2.0 * power;
    record_("sketch", stream, products * 2.0 * elements_of(shape) * static_cast<double>(rank),
            8.0 * static_cast<double>(shape.count * shape.rows * rank),
            [&] { inner_.sketch(stream, shape, rank, kind, power, keys, stack, sketch); });
  }
  void orthonormal_basis(Stream& stream, std::int64_t count, std::int64_t rows, std::int64_t rank, BasisMethod method,
                         float* sketch) override {
    record_("orthonormal basis", stream, 4.0 * static_cast<double>(count * rows * rank * rank),
            8.0 * static_cast<double>(count * rows * rank),
            [&] { inner_.orthonormal_basis(stream, count, rows, rank, method, sketch); });
  }
  void project(Stream& stream, const StackShape& shape, std::int64_t rank, const float* basis, const float* stack,
               float* projected) override {
    record_("projection", stream, 2.0 * elements_of(shape) * static_cast<double>(rank), 4 * elements_of(shape),
            [&] { inner_.project(stream, shape, rank, basis, stack, projected); });
  }
  void update_dense(Stream& stream, const UpdateRule& rule, const StepGate& gate, const float* stack,
                    std::span<const float> scales, std::span<const MatrixView> parameters) override {
    record_("dense update", stream, 0, 12 * elements_of(parameters),
            [&] { inner_.update_dense(stream, rule, gate, stack, scales, parameters); });
  }
  void update_factors(Stream& stream, const UpdateRule& rule, const StepGate& gate, std::int64_t rank,
                      const float* basis, const float* factor, std::span<const float> scales,
                      std::span<const MatrixView> parameters) override {
    record_("low-rank update", stream, 2.0 * elements_of(parameters) * static_cast<double>(rank),
            8 * elements_of(parameters),
            [&] { inner_.update_factors(stream, rule, gate, rank, basis, factor, scales, parameters); });
  }

 private:
  MatrixOps& inner_;
  Recorder record_;
};

class ProfilingBackend final : public Backend {
 public:
  ProfilingBackend(Backend& inner, Profile& profile)
      : inner_(inner),
        embedding_(inner.embedding(), Recorder(profile)),
        norm_(inner.norm(), Recorder(profile)),
        linear_(inner.linear(), Recorder(profile)),
        mix_(inner.mix(), Recorder(profile)),
        attention_(inner.attention(), Recorder(profile)),
        loss_(inner.loss(), Recorder(profile)),
        elementwise_(inner.elementwise(), Recorder(profile)),
        matrix_(inner.matrix(), Recorder(profile)) {}

  Device& device() override { return inner_.device(); }
  EmbeddingOps& embedding() override { return embedding_; }
  NormOps& norm() override { return norm_; }
  LinearOps& linear() override { return linear_; }
  MixOps& mix() override { return mix_; }
  AttentionOps& attention() override { return attention_; }
  LossOps& loss() override { return loss_; }
  ElementwiseOps& elementwise() override { return elementwise_; }
  MatrixOps& matrix() override { return matrix_; }

 private:
  Backend& inner_;
  ProfiledEmbedding embedding_;
  ProfiledNorm norm_;
  ProfiledLinear linear_;
  ProfiledMix mix_;
  ProfiledAttention attention_;
  ProfiledLoss loss_;
  ProfiledElementwise elementwise_;
  ProfiledMatrix matrix_;
};

}  // namespace

std::unique_ptr<Backend> make_profiling_backend(Backend& inner, Profile& profile) {
  return std::make_unique<ProfilingBackend>(inner, profile);
}

}  // namespace polaron

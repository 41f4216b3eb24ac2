// The ops that optimizers are made of. Matrices of one shape class are handled together: a "stack" is contiguous memory
// of `count` matrices [rows, cols] one after the other, with rows <= cols (taller parameters are transposed on the way
// in and out). Stacks are fp32 on the CPU; a backend may hold them in `dtype` where the spec says so. All ops
// deterministic.
//
// References: OPTIMIZERS in docs/design.md gives the sources of the update rules; low-rank orthogonalization is arXiv
// 2509.11983.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/bf16.h"
#include "backend/device.h"
#include "backend/philox.h"
#include "backend/tensor.h"

namespace polaron {

// What a whole step shares, in device memory, so that no kernel waits for the host.
struct StepGate {
  const float* clip = nullptr;          // factor on every gradient; null = 1
  const std::int32_t* apply = nullptr;  // 0: leave parameters and state untouched; null = 1
};

// --- elementwise optimizers over flat ranges
// -----------------------------------------------------------------------------

struct AdamWRange {
  float* parameter;  // fp32 master, n elements; likewise gradient, m and v
  const float* gradient;
  float* m;
  float* v;
  std::int64_t n;
  float lr, beta1, beta2, eps, weight_decay;
  std::int64_t step;            // 1 at the first update (bias correction)
  bf16* working = nullptr;      // n elements that get the new parameters, rounded; null: none wanted
  bool bf16_parameter = false;  // the new parameter, or the new m and v, are rounded to what bf16 can hold: quirks of
  bool bf16_moments = false;    // the authors' code (docs/paper.md)
};

struct SgdRange {
  float* parameter;
  const float* gradient;
  float* momentum;  // null without momentum
  std::int64_t n;
  float lr, mu, weight_decay;
  bool nesterov;
  bf16* working = nullptr;  // as above
};

class ElementwiseOps {
 public:
  virtual ~ElementwiseOps() = default;
  // torch.optim.AdamW: p *= 1 - lr*wd;  m = lerp(m, g, 1-b1);  v = b2 v + (1-b2) g^2;
  // p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps).
  virtual void adamw(Stream& stream, std::span<const AdamWRange> ranges, const StepGate& gate) = 0;
  // torch.optim.SGD with decoupled decay: p *= 1 - lr*wd;  b = mu b + g;  p -= lr * (nesterov ? g + mu b : b).
  virtual void sgd(Stream& stream, std::span<const SgdRange> ranges, const StepGate& gate) = 0;
  // values[i] *= factor.
  virtual void scale(Stream& stream, float* values, std::int64_t n, float factor) = 0;
  // to[i] = from[i] rounded to nearest: the working copy of weights that were drawn or loaded.
  virtual void round(Stream& stream, const float* from, bf16* to, std::int64_t n) = 0;
  // *sum (fp64) = sum of squares over all ranges, in an order that does not depend on the number of threads.
  virtual void sum_of_squares(Stream& stream, std::span<const std::span<const float>> ranges, double* sum) = 0;
  // From the gradient's sum of squares: *norm = sqrt(sum); *clip = max_norm > 0 ? min(1, max_norm / (norm + 1e-6)) : 1;
  // *apply = loss and norm are finite and loss <= loss_limit (loss = *loss_sum * loss_scale).
  virtual void decide(Stream& stream, const double* sum_of_squares, const double* loss_sum, double loss_scale,
                      float max_norm, double loss_limit, float* norm, float* clip, std::int32_t* apply) = 0;
};

// --- matrix optimizers
// ---------------------------------------------------------------------------------------------------

// One matrix of a class, as the parameter table stores it: [rows, cols] with a row stride (padding stays outside).
struct MatrixView {
  float* data;
  std::int64_t rows, cols, stride;
  bf16* working = nullptr;  // of a parameter: a copy of the same layout that an update rewrites, rounded; null: none
  bool tall() const { return rows > cols; }
};

// The common shape of a stack's matrices, rows <= cols.
struct StackShape {
  std::int64_t count, rows, cols;
  std::int64_t elements() const { return rows * cols; }
};

enum class MomentumKind : std::uint8_t { none, ema, heavy };  // b = lerp(b, g, 1-mu) | b = mu b + g
struct MomentumRule {
  MomentumKind kind = MomentumKind::ema;
  float mu = 0.95F;
  bool nesterov = true;  // u = lerp(g, b, mu) (ema) | g + mu b (heavy); otherwise u = b
};

// Odd polynomial a x + b x^3 + c x^5, one a step; beyond the table the last row repeats.
struct NewtonSchulzRow {
  float a, b, c;
};
struct NewtonSchulzSpec {
  std::vector<NewtonSchulzRow> table;
  int steps = 5;
  // x is divided by (norm * norm_factor + norm_eps) first, norm = Frobenius norm.
  float norm_factor = 1.0F;
  float norm_eps = 1e-7F;
  // torch.optim.Muon divides by max(norm, eps) instead.
  bool clamp_norm = false;
  // f32, or bf16: the quotient x / norm, which is still computed in fp32, is rounded to bf16, and so is every matrix
  // that the products make of it, A = X X^T, B = b A + c A^2 and X = a X + B X. Sums are fp32. That is how Keller
  // Jordan's Muon and torch.optim.Muon compute; they round x before the division as well.
  DType dtype = DType::f32;
};

enum class Sketch : std::uint8_t { columns, leading_columns, gaussian };
enum class BasisMethod : std::uint8_t { automatic, householder, cholesky_qr };  // automatic: the backend's best

class MatrixOps {
 public:
  virtual ~MatrixOps() = default;

  // How many matrices of this shape one group should hold: the optimizer walks a class in such groups and plans scratch
  // for one. (A CPU wants a few per thread, so that a group stays in cache; a GPU wants all of them.)
  virtual std::int64_t preferred_group(std::int64_t rows, std::int64_t cols) const = 0;

  // For matrix i: g = clip * gradients[i]; momentum (stored like the parameter, contiguous [rows, cols], null for kind
  // none) is updated unless gate says no; stack[i] = u, transposed where tall. A group may mix a shape with
  // its transpose. Non-finite input is caught by the gate before this; where the gate says no, the stack too stays as
  // it was.
  virtual void momentum_to_stack(Stream& stream, const MomentumRule& rule, const StepGate& gate,
                                 std::span<const MatrixView> gradients, std::span<float* const> momentum,
                                 float* stack) = 0;

  // stack -> its orthogonalization by Newton-Schulz, in place. x with zero norm stays zero.
  // X <- a X + (b A + c A^2) X, A = X X^T. `scratch`: newton_schulz_scratch(shape, spec.dtype) floats.
  virtual void newton_schulz(Stream& stream, const StackShape& shape, const NewtonSchulzSpec& spec, float* stack,
                             float* scratch) = 0;
  virtual std::int64_t newton_schulz_scratch(const StackShape& shape, DType dtype) const = 0;

  // stack -> U V^T of its thin SVD restricted to singular values > rows * eps_fp32 * largest, in place (LAPACK; for
  // checks).
  virtual void exact_polar(Stream& stream, const StackShape& shape, float* stack) = 0;

  // sketch[i] [rows, rank]: `rank` distinct columns of stack[i] chosen by keyed_permutation(key of i) (columns;
  // leading_columns: among the first `rows` only), or stack[i] * Omega with Omega [cols, rank] of gaussian(key of i,
  // element) (gaussian). Then `power` times sketch <- X (X^T Q), Q an orthonormal basis of the sketch. keys: one a
  // matrix.
  virtual void sketch(Stream& stream, const StackShape& shape, std::int64_t rank, Sketch kind, int power,
                      std::span<const PhiloxKey> keys, const float* stack, float* sketch) = 0;
  // sketch[i] [rows, rank] -> Q with orthonormal columns spanning it, in place. householder: LAPACK; cholesky_qr: three
  // passes, each shifted by 1e-6 trace + 1e-30. A zero column of the sketch gives a zero column of Q and changes no
  // other one; columns that depend on those before them give any columns that keep the largest singular value of Q
  // at 1.
  virtual void orthonormal_basis(Stream& stream, std::int64_t count, std::int64_t rows, std::int64_t rank,
                                 BasisMethod method, float* sketch) = 0;
  // projected[i] [rank, cols] = Q_i^T X_i.
  virtual void project(Stream& stream, const StackShape& shape, std::int64_t rank, const float* basis,
                       const float* stack, float* projected) = 0;

  // Decoupled decay and step with a dense direction: W_i = (1 - lr*decay) W_i - lr*scales[i] * (O_i or its transpose
  // where tall).
  struct UpdateRule {
    float lr;
    float weight_decay;
  };
  virtual void update_dense(Stream& stream, const UpdateRule& rule, const StepGate& gate, const float* stack,
                            std::span<const float> scales, std::span<const MatrixView> parameters) = 0;
  // The same with O_i = Q_i Z_i: basis [rows, rank], factor [rank, cols].
  virtual void update_factors(Stream& stream, const UpdateRule& rule, const StepGate& gate, std::int64_t rank,
                              const float* basis, const float* factor, std::span<const float> scales,
                              std::span<const MatrixView> parameters) = 0;
};

}  // namespace polaron

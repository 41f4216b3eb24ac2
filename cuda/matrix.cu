// MatrixOps on a CUDA device: checks what it is given and puts the ops together from kernels and batched products.
#include "cuda/matrix.h"

#include <algorithm>

#include "backend/matrix_checks.h"
#include "cuda/decomposition.h"
#include "cuda/families.h"

namespace polaron::cuda {
namespace {

constexpr std::int64_t kMostOfGroup = std::int64_t{1} << 28U;    // elements a group: 1 GiB of stack
constexpr std::int64_t kMostOfProduct = std::int64_t{1} << 26U;  // elements of directions at a time

// A product with a sketch or a basis: its operands may be rounded to TF32. That is finer than bf16, to which the
// authors of arXiv 2509.11983 round both. Gram matrices are not of that kind: their small eigenvalues would drown.
GemmCall sketch_product(std::int64_t count, std::int64_t m, std::int64_t n, std::int64_t k, const GemmMatrix& a,
                        const GemmMatrix& b, const MatrixBatch& c) {
  GemmCall call = product_of(count, m, n, k, a, b, c);
  call.tf32 = true;
  return call;
}

class CudaMatrixOps final : public MatrixOps {
 public:
  CudaMatrixOps(Device& device, Gemm& gemm)
      : device_(device), gemm_(gemm), normalize_(device), numbers_(device), sketches_(device), factors_(device) {}

  std::int64_t preferred_group(std::int64_t rows, std::int64_t cols) const override {
    // All of a class, unless that is very much memory: so many elements keep a device busy.
    return std::max<std::int64_t>(1, kMostOfGroup / std::max<std::int64_t>(1, rows * cols));
  }

  void momentum_to_stack(Stream& stream, const MomentumRule& rule, const StepGate& gate,
                         std::span<const MatrixView> gradients, std::span<float* const> momentum,
                         float* stack) override {
    check_views(gradients);
    require_argument(rule.kind == MomentumKind::none || momentum.size() == gradients.size(),
                     "one momentum buffer a gradient");
    cuda::momentum_to_stack(stream, rule, gate, gradients, momentum, stack);
  }

  void newton_schulz(Stream& stream, const StackShape& shape, const NewtonSchulzSpec& spec, float* stack,
                     float* scratch) override {
    check_stack(shape);
    require_argument(spec.steps <= 0 || !spec.table.empty(), "a Newton-Schulz table needs a row");
    cuda::newton_schulz(stream, gemm_, normalize_, shape, spec, stack, scratch);
  }

  std::int64_t newton_schulz_scratch(const StackShape& shape, DType dtype) const override {
    check_stack(shape);
    require_argument(dtype == DType::f32 || dtype == DType::bf16, "Newton-Schulz computes in fp32 or bf16");
    return newton_schulz_floats(shape, dtype);
  }

  void exact_polar(Stream& stream, const StackShape& shape, float* stack) override {
    check_stack(shape);
    decompositions().exact_polar(stream, shape, stack);
  }

  void sketch(Stream& stream, const StackShape& shape, std::int64_t rank, Sketch kind, int power,
              std::span<const PhiloxKey> keys, const float* stack, float* sketch) override {
    check_stack(shape);
    check_rank(rank, shape.rows);
    require_argument(static_cast<std::int64_t>(keys.size()) == shape.count, "one key a matrix");
    const MatrixBatch x = stacked(stack, shape.rows, shape.cols), y = stacked(sketch, shape.rows, rank);
    if (kind != Sketch::gaussian) {
      gather_columns(stream, shape, kind == Sketch::columns ? shape.cols : shape.rows, rank, keys, stack, sketch);
    } else {
      float* const numbers = numbers_.room<float>(shape.count * shape.cols * rank);
      fill_gaussian(stream, shape.cols, rank, keys, numbers);
      gemm_(stream,
            sketch_product(shape.count, shape.rows, rank, shape.cols, x, stacked(numbers, shape.cols, rank), y));
    }
    for (int pass = 0; pass < power; ++pass) {
      orthonormal_basis(stream, shape.count, shape.rows, rank, BasisMethod::automatic, sketch);
      float* const projected = numbers_.room<float>(shape.count * rank * shape.cols);
      project(stream, shape, rank, sketch, stack, projected);
      gemm_(stream, sketch_product(shape.count, shape.rows, rank, shape.cols, x,
                                   stacked(projected, rank, shape.cols).transposed(), y));
    }
  }

  // Cholesky-QR: three passes of Q <- Q L^-T with L L^T = Q^T Q + shift; the first one reads the sketch divided by its
  // norm, for Q^T Q could overflow or underflow otherwise. The shifts of the passes make columns too short by sqrt(1 +
  // shift): the last one mends that. Where Q is rounded to TF32 its span moves by that much and no more, for rounding
  // L^-T changes no span, and the next pass has the Gram matrix of what is really there.
  void orthonormal_basis(Stream& stream, std::int64_t count, std::int64_t rows, std::int64_t rank, BasisMethod method,
                         float* sketch) override {
    check_rank(rank, rows);
    if (count == 0) return;
    if (method == BasisMethod::householder) return decompositions().householder(stream, count, rows, rank, sketch);
    const std::int64_t square = count * rank * rank;
    float* const copy = sketches_.room<float>(count * rows * rank);
    float* const gram = factors_.room<float>(2 * square + inverse_factor_floats(count, rank));
    const MatrixBatch grams = stacked(gram, rank, rank), inverses = stacked(gram + square, rank, rank);
    MatrixBatch from = stacked(copy, rows, rank), to = stacked(sketch, rows, rank);
    normalize_(stream, {}, {count, rows, rank}, sketch, from);
    constexpr int kPasses = 3;  // odd: the last one writes the sketch
    for (int pass = 1; pass <= kPasses; ++pass) {
      gemm_(stream, product_of(count, rank, rank, rows, from.transposed(), from, grams));
      inverse_cholesky_factor(stream, count, rank, pass == kPasses, gram, inverses.f32(), gram + 2 * square);
      gemm_(stream, sketch_product(count, rows, rank, rank, from, inverses.transposed(), to));
      std::swap(from, to);
    }
  }

  void project(Stream& stream, const StackShape& shape, std::int64_t rank, const float* basis, const float* stack,
               float* projected) override {
    check_stack(shape);
    check_rank(rank, shape.rows);
    gemm_(stream,
          sketch_product(shape.count, rank, shape.cols, shape.rows, stacked(basis, shape.rows, rank).transposed(),
                         stacked(stack, shape.rows, shape.cols), stacked(projected, rank, shape.cols)));
  }

  void update_dense(Stream& stream, const UpdateRule& rule, const StepGate& gate, const float* stack,
                    std::span<const float> scales, std::span<const MatrixView> parameters) override {
    check_views(parameters);
    require_argument(scales.size() == parameters.size(), "one scale a parameter");
    cuda::update_dense(stream, rule, gate, stack, scales, parameters);
  }

  // The products are formed first, some matrices at a time: adding them to the parameters within the product would need
  // one launch a matrix and another pass for the working copies, and a closed gate could still change a -0.
  void update_factors(Stream& stream, const UpdateRule& rule, const StepGate& gate, std::int64_t rank,
                      const float* basis, const float* factor, std::span<const float> scales,
                      std::span<const MatrixView> parameters) override {
    check_views(parameters);
    require_argument(scales.size() == parameters.size(), "one scale a parameter");
    if (parameters.empty()) return;
    const auto [rows, cols] = std::minmax(parameters[0].rows, parameters[0].cols);
    check_rank(rank, rows);
    const std::int64_t most = std::max<std::int64_t>(1, kMostOfProduct / (rows * cols));
    for (std::size_t first = 0; first < parameters.size(); first += static_cast<std::size_t>(most)) {
      const std::size_t size = std::min(static_cast<std::size_t>(most), parameters.size() - first);
      const auto count = static_cast<std::int64_t>(size), at = static_cast<std::int64_t>(first);
      float* const directions = numbers_.room<float>(count * rows * cols);
      gemm_(stream, sketch_product(count, rows, cols, rank, stacked(basis + at * rows * rank, rows, rank),
                                   stacked(factor + at * rank * cols, rank, cols), stacked(directions, rows, cols)));
      cuda::update_dense(stream, rule, gate, directions, scales.subspan(first, size), parameters.subspan(first, size));
    }
  }

 private:
  Decompositions& decompositions() {
    if (decompositions_ == nullptr) decompositions_ = std::make_unique<Decompositions>(device_, gemm_, normalize_);
    return *decompositions_;
  }

  Device& device_;
  Gemm& gemm_;
  Normalizer normalize_;
  Scratch numbers_;                                 // Omega, X^T Q or Q Z, in turn
  Scratch sketches_;                                // a copy of the sketch
  Scratch factors_;                                 // Gram matrices, their inverse factors and what finding them takes
  std::unique_ptr<Decompositions> decompositions_;  // null until one is asked for
};

// The largest of what the buffers of the ops have to hold.
class Rooms {
 public:
  void add(const Workload::Matrices& m) {
    const auto [count, rows, cols] = m.shape;
    if (m.rank == 0) return orthogonalization(m, m.shape);
    const std::int64_t rank = m.rank;
    if (m.sketch == Sketch::gaussian || m.power > 0) take(numbers_, count * rank * cols);
    if (m.power > 0) basis(m, BasisMethod::automatic);
    basis(m, m.basis);
    orthogonalization(m, {count, rank, cols});
    const std::int64_t at_once = std::max<std::int64_t>(1, kMostOfProduct / (rows * cols));
    take(numbers_, std::min(m.updated, at_once) * rows * cols);
  }
  std::int64_t bytes() const { return sums_ + 4 * (numbers_ + sketches_ + factors_) + decompositions_.bytes(); }

 private:
  static void take(std::int64_t& room, std::int64_t wanted) { room = std::max(room, wanted); }
  void take(const Decompositions::Room& wanted) {
    take(decompositions_.floats, wanted.floats);
    take(decompositions_.integers, wanted.integers);
    take(decompositions_.work, wanted.work);
  }
  void basis(const Workload::Matrices& m, BasisMethod method) {
    const auto [count, rows, cols] = m.shape;
    take(sums_, Normalizer::scratch_bytes({count, rows, m.rank}));
    if (method == BasisMethod::householder) return take(Decompositions::householder_room(count, rows, m.rank));
    take(sketches_, count * rows * m.rank);
    take(factors_, 2 * count * m.rank * m.rank + inverse_factor_floats(count, m.rank));
  }
  void orthogonalization(const Workload::Matrices& m, const StackShape& shape) {
    take(sums_, Normalizer::scratch_bytes(shape));
    if (m.exact) take(Decompositions::exact_polar_room(shape));
  }

  std::int64_t sums_ = 0;                                  // bytes
  std::int64_t numbers_ = 0, sketches_ = 0, factors_ = 0;  // floats
  Decompositions::Room decompositions_;
};

}  // namespace

std::int64_t matrix_scratch_bytes(const Workload& workload) {
  Rooms rooms;
  for (const Workload::Matrices& matrices : workload.matrices) {
    if (matrices.shape.count > 0 || matrices.updated > 0) rooms.add(matrices);
  }
  return rooms.bytes();
}

std::unique_ptr<MatrixOps> make_matrix_ops(Device& device, Gemm& gemm) {
  return std::make_unique<CudaMatrixOps>(device, gemm);
}

}  // namespace polaron::cuda

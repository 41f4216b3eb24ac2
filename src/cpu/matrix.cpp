// MatrixOps on the CPU: checks what it is given and spreads the matrices of a group over the threads.
#include <algorithm>

#include "backend/matrix_checks.h"
#include "cpu/blas.h"
#include "cpu/families.h"
#include "cpu/gemm_unit.h"
#include "cpu/matrix_kernels.h"

namespace polaron::cpu {
namespace {

bool closed(const StepGate& gate) { return gate.apply != nullptr && *gate.apply == 0; }

class CpuMatrixOps final : public MatrixOps {
 public:
  std::int64_t preferred_group(std::int64_t rows, std::int64_t cols) const override {
    // One matrix a thread; several where they are small, so that starting the threads costs little; a single one where
    // a group would be too much memory, for threaded BLAS is efficient on those.
    constexpr std::int64_t kSmall = std::int64_t{1} << 18U;  // elements a thread: 1 MiB
    constexpr std::int64_t kLarge = std::int64_t{1} << 28U;  // elements a group: 1 GiB
    const std::int64_t elements = std::max<std::int64_t>(1, rows * cols);
    if (elements * team_.threads() > kLarge) return 1;
    return team_.threads() * std::clamp<std::int64_t>(kSmall / elements, 1, 16);
  }

  void momentum_to_stack(Stream&, const MomentumRule& rule, const StepGate& gate, std::span<const MatrixView> gradients,
                         std::span<float* const> momentum, float* stack) override {
    check_views(gradients);
    require_argument(rule.kind == MomentumKind::none || momentum.size() == gradients.size(),
                     "one momentum buffer a gradient");
    if (!closed(gate)) cpu::momentum_to_stack(rule, gate, gradients, momentum, stack);
  }

  void newton_schulz(Stream&, const StackShape& shape, const NewtonSchulzSpec& spec, float* stack,
                     float* scratch) override {
    check_stack(shape);
    require_argument(spec.steps <= 0 || !spec.table.empty(), "a Newton-Schulz table needs a row");
    const std::int64_t floats = newton_schulz_slot(shape, spec.dtype);
    const int threads = team_.threads_each(shape.count, shape.elements());
    team_.for_each(shape.count, shape.elements(), [&](std::int64_t i, int slot) {
      float* const x = stack + i * shape.elements();
      if (spec.dtype == DType::bf16) {
        newton_schulz_bf16(default_block_unit(), spec, shape.rows, shape.cols, x, scratch + slot * floats, threads);
      } else {
        cpu::newton_schulz(spec, shape.rows, shape.cols, x, scratch + slot * floats);
      }
    });
  }

  std::int64_t newton_schulz_scratch(const StackShape& shape, DType dtype) const override {
    check_stack(shape);
    return team_.slots(shape.count, shape.elements()) * newton_schulz_slot(shape, dtype);
  }

  void exact_polar(Stream&, const StackShape& shape, float* stack) override {
    check_stack(shape);
    team_.for_each(shape.count, shape.elements(), [&](std::int64_t i, int) {
      cpu::exact_polar(shape.rows, shape.cols, stack + i * shape.elements());
    });
  }

  void sketch(Stream&, const StackShape& shape, std::int64_t rank, Sketch kind, int power,
              std::span<const PhiloxKey> keys, const float* stack, float* sketch) override {
    check_stack(shape);
    check_rank(rank, shape.rows);
    require_argument(static_cast<std::int64_t>(keys.size()) == shape.count, "one key a matrix");
    team_.for_each_with(sketch_floats(shape.rows, shape.cols, rank, kind, power), shape.count, shape.elements(),
                        [&](std::int64_t i, float* workspace) {
                          cpu::sketch(keys[static_cast<std::size_t>(i)], shape.rows, shape.cols, rank, kind, power,
                                      stack + i * shape.elements(), sketch + i * shape.rows * rank, workspace);
                        });
  }

  void orthonormal_basis(Stream&, std::int64_t count, std::int64_t rows, std::int64_t rank, BasisMethod method,
                         float* sketch) override {
    check_rank(rank, rows);
    team_.for_each_with(basis_floats(rows, rank), count, rows * rank, [&](std::int64_t i, float* workspace) {
      cpu::orthonormal_basis(method, rows, rank, sketch + i * rows * rank, workspace);
    });
  }

  void project(Stream&, const StackShape& shape, std::int64_t rank, const float* basis, const float* stack,
               float* projected) override {
    check_stack(shape);
    check_rank(rank, shape.rows);
    team_.for_each(shape.count, shape.elements(), [&](std::int64_t i, int) {
      cpu::project(shape.rows, shape.cols, rank, basis + i * shape.rows * rank, stack + i * shape.elements(),
                   projected + i * rank * shape.cols);
    });
  }

  void update_dense(Stream&, const UpdateRule& rule, const StepGate& gate, const float* stack,
                    std::span<const float> scales, std::span<const MatrixView> parameters) override {
    check_views(parameters);
    require_argument(scales.size() == parameters.size(), "one scale a parameter");
    if (!closed(gate)) cpu::update_dense(rule, stack, scales, parameters);
  }

  void update_factors(Stream&, const UpdateRule& rule, const StepGate& gate, std::int64_t rank, const float* basis,
                      const float* factor, std::span<const float> scales,
                      std::span<const MatrixView> parameters) override {
    check_views(parameters);
    require_argument(scales.size() == parameters.size(), "one scale a parameter");
    if (!closed(gate)) cpu::update_factors(team_, rule, rank, basis, factor, scales, parameters);
  }

 private:
  // Floats of scratch for one matrix in work.
  std::int64_t newton_schulz_slot(const StackShape& shape, DType dtype) const {
    require_argument(dtype == DType::f32 || dtype == DType::bf16, "Newton-Schulz computes in fp32 or bf16");
    if (dtype == DType::f32) return newton_schulz_floats(shape.rows, shape.cols);
    return newton_schulz_bf16_floats(default_block_unit(), shape.rows, shape.cols,
                                     team_.threads_each(shape.count, shape.elements()));
  }

  MatrixTeam team_;
};

}  // namespace

std::unique_ptr<MatrixOps> make_matrix_ops() {
  select_blas_kernels();
  return std::make_unique<CpuMatrixOps>();
}

}  // namespace polaron::cpu

// The parts of the CPU's MatrixOps (backend/optimizer_ops.h has their contracts). All fp32, row-major and contiguous
// unless said otherwise. Functions on one matrix use threaded BLAS when called outside a parallel region.
#pragma once

#include <cstdint>
#include <span>

#include "backend/optimizer_ops.h"
#include "cpu/matrix_team.h"

namespace polaron::cpu {

class BlockUnit;  // gemm_unit.h

// Sum of squares of x[0, n) in double: neither overflows nor underflows for any finite fp32 values. The order of
// summation depends on n alone.
double sum_of_squares(const float* x, std::int64_t n);
// to = from * factor, multiplied in double so that a factor outside of fp32's range does no harm. `to` may be `from`.
void scale(const float* from, double factor, float* to, std::int64_t n);
// to [cols, rows] = from [rows, cols] transposed.
void transpose(const float* from, std::int64_t rows, std::int64_t cols, float* to);

// momentum_update.cpp
void momentum_to_stack(const MomentumRule& rule, const StepGate& gate, std::span<const MatrixView> gradients,
                       std::span<float* const> momentum, float* stack);
void update_dense(const MatrixOps::UpdateRule& rule, const float* stack, std::span<const float> scales,
                  std::span<const MatrixView> parameters);
void update_factors(const MatrixTeam& team, const MatrixOps::UpdateRule& rule, std::int64_t rank, const float* basis,
                    const float* factor, std::span<const float> scales, std::span<const MatrixView> parameters);

// newton_schulz.cpp: x [rows, cols] -> its orthogonalization; scratch of newton_schulz_floats(rows, cols) floats.
std::int64_t newton_schulz_floats(std::int64_t rows, std::int64_t cols);
void newton_schulz(const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols, float* x, float* scratch);
// What x is divided by before the first step; 0 for x = 0, which stays as it is.
double divisor_of(const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols, const float* x);

// newton_schulz_bf16.cpp: the same in bf16 (NewtonSchulzSpec::dtype) by `threads` threads, whose number does not change
// the result; scratch of newton_schulz_bf16_floats() floats.
std::int64_t newton_schulz_bf16_floats(const BlockUnit& unit, std::int64_t rows, std::int64_t cols, int threads);
void newton_schulz_bf16(const BlockUnit& unit, const NewtonSchulzSpec& spec, std::int64_t rows, std::int64_t cols,
                        float* x, float* scratch, int threads);

// low_rank.cpp: x [rows, cols], y [rows, rank].
std::size_t basis_floats(std::int64_t rows, std::int64_t rank);
void orthonormal_basis(BasisMethod method, std::int64_t rows, std::int64_t rank, float* y, float* workspace);
std::size_t sketch_floats(std::int64_t rows, std::int64_t cols, std::int64_t rank, Sketch kind, int power);
void sketch(const PhiloxKey& key, std::int64_t rows, std::int64_t cols, std::int64_t rank, Sketch kind, int power,
            const float* x, float* y, float* workspace);
void project(std::int64_t rows, std::int64_t cols, std::int64_t rank, const float* basis, const float* x,
             float* projected);

// polar.cpp: x [rows, cols] -> U V^T by LAPACK's divide and conquer SVD; NaN throughout when x is not finite.
void exact_polar(std::int64_t rows, std::int64_t cols, float* x);

}  // namespace polaron::cpu

// The first and the last op of a matrix optimizer's step: momentum into the stack, and the stack (or its factors) into
// the parameters. Each reads and writes every operand once; what bounds them is memory.
#include <cblas.h>

#include <algorithm>
#include <vector>

#include "cpu/matrix_kernels.h"

namespace polaron::cpu {
namespace {

// Tall parameters meet their transposed stack in tiles of kTile rows of the parameter (one cache line of the stack) by
// kStrip columns.
constexpr std::int64_t kTile = 16;
constexpr std::int64_t kStrip = 64;
constexpr std::int64_t kTaskElements = 16384;  // least work worth handing to a thread

// b' = keep b + add g;  u = from_momentum b' + from_gradient g;  g = clip * gradient.
struct MomentumFactors {
  float clip, keep, add, from_momentum, from_gradient;
};

MomentumFactors factors_of(const MomentumRule& rule, float clip) {
  const bool heavy = rule.kind == MomentumKind::heavy;
  const float add = heavy ? 1.0F : 1.0F - rule.mu;
  return {clip, rule.mu, add, rule.nesterov ? rule.mu : 1.0F, rule.nesterov ? add : 0.0F};
}

// n elements in a row; b may be null (no momentum: u = g).
void momentum_row(const MomentumFactors& f, const float* __restrict gradient, float* __restrict b, float* __restrict u,
                  std::int64_t n) {
  if (b == nullptr) {
    for (std::int64_t j = 0; j < n; ++j) u[j] = f.clip * gradient[j];
    return;
  }
  for (std::int64_t j = 0; j < n; ++j) {
    const float g = f.clip * gradient[j];
    const float next = f.keep * b[j] + f.add * g;
    b[j] = next;
    u[j] = f.from_momentum * next + f.from_gradient * g;
  }
}

// Rows [first, first + rows) of a parameter-shaped matrix of `cols` columns.
void momentum_rows(const MomentumFactors& f, const MatrixView& gradient, float* momentum, float* u, std::int64_t first,
                   std::int64_t rows) {
  for (std::int64_t i = first; i < first + rows; ++i) {
    momentum_row(f, gradient.data + i * gradient.stride, momentum == nullptr ? nullptr : momentum + i * gradient.cols,
                 u + i * gradient.cols, gradient.cols);
  }
}

void momentum_rows_transposed(const MomentumFactors& f, const MatrixView& gradient, float* momentum, float* u,
                              std::int64_t first, std::int64_t rows) {
  float tile[kTile * kStrip];
  for (std::int64_t i0 = first; i0 < first + rows; i0 += kTile) {
    const std::int64_t tile_rows = std::min(kTile, first + rows - i0);
    for (std::int64_t j0 = 0; j0 < gradient.cols; j0 += kStrip) {
      const std::int64_t strip = std::min(kStrip, gradient.cols - j0);
      for (std::int64_t i = 0; i < tile_rows; ++i) {
        momentum_row(f, gradient.data + (i0 + i) * gradient.stride + j0,
                     momentum == nullptr ? nullptr : momentum + (i0 + i) * gradient.cols + j0, tile + i * kStrip,
                     strip);
      }
      for (std::int64_t j = 0; j < strip; ++j) {
        float* to = u + (j0 + j) * gradient.rows + i0;
        for (std::int64_t i = 0; i < tile_rows; ++i) to[i] = tile[i * kStrip + j];
      }
    }
  }
}

void update_rows(float keep, float step, const float* stack, const MatrixView& parameter, std::int64_t first,
                 std::int64_t rows) {
  for (std::int64_t i = first; i < first + rows; ++i) {
    float* __restrict w = parameter.data + i * parameter.stride;
    const float* __restrict o = stack + i * parameter.cols;
    for (std::int64_t j = 0; j < parameter.cols; ++j) w[j] = keep * w[j] - step * o[j];
  }
}

void update_rows_transposed(float keep, float step, const float* stack, const MatrixView& parameter, std::int64_t first,
                            std::int64_t rows) {
  float tile[kTile * kStrip];
  for (std::int64_t i0 = first; i0 < first + rows; i0 += kTile) {
    const std::int64_t tile_rows = std::min(kTile, first + rows - i0);
    for (std::int64_t j0 = 0; j0 < parameter.cols; j0 += kStrip) {
      const std::int64_t strip = std::min(kStrip, parameter.cols - j0);
      for (std::int64_t j = 0; j < strip; ++j) {
        const float* from = stack + (j0 + j) * parameter.rows + i0;
        for (std::int64_t i = 0; i < tile_rows; ++i) tile[i * kStrip + j] = from[i];
      }
      for (std::int64_t i = 0; i < tile_rows; ++i) {
        float* __restrict w = parameter.data + (i0 + i) * parameter.stride + j0;
        for (std::int64_t j = 0; j < strip; ++j) w[j] = keep * w[j] - step * tile[i * kStrip + j];
      }
    }
  }
}

// The working copy of rows that have just been updated, while they are in cache.
void round_rows(const MatrixView& parameter, std::int64_t first, std::int64_t rows) {
  if (parameter.working == nullptr) return;
  for (std::int64_t i = first; i < first + rows; ++i) {
    const float* const from = parameter.data + i * parameter.stride;
    bf16* const to = parameter.working + i * parameter.stride;
#pragma omp simd
    for (std::int64_t j = 0; j < parameter.cols; ++j) to[j] = to_bf16(from[j]);
  }
}

// Calls body(matrix, first row, rows) for runs of rows of all matrices of a group, on all threads. The matrices have
// the same number of elements, but some may be tall and some wide.
template <class Body>
void for_row_tiles(std::span<const MatrixView> views, Body&& body) {
  if (views.empty()) return;
  const std::int64_t parts = std::max<std::int64_t>(1, views[0].rows * views[0].cols / kTaskElements);
  const std::int64_t tasks = static_cast<std::int64_t>(views.size()) * parts;
  const bool worthwhile = static_cast<std::int64_t>(views.size()) * views[0].rows * views[0].cols >= 4 * kTaskElements;
  for_ranges(tasks, worthwhile ? 2 : tasks + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const auto matrix = static_cast<std::size_t>(task / parts);
      // Tall ones are cut between their tiles.
      const std::int64_t unit = views[matrix].tall() ? kTile : 1;
      const std::int64_t units = (views[matrix].rows + unit - 1) / unit;
      const std::int64_t first = units * (task % parts) / parts * unit;
      const std::int64_t last = std::min(units * (task % parts + 1) / parts * unit, views[matrix].rows);
      if (first < last) body(matrix, first, last - first);
    }
  });
}

}  // namespace

void momentum_to_stack(const MomentumRule& rule, const StepGate& gate, std::span<const MatrixView> gradients,
                       std::span<float* const> momentum, float* stack) {
  const MomentumFactors f = factors_of(rule, gate.clip == nullptr ? 1.0F : *gate.clip);
  for_row_tiles(gradients, [&](std::size_t matrix, std::int64_t first, std::int64_t rows) {
    const MatrixView& gradient = gradients[matrix];
    float* buffer = rule.kind == MomentumKind::none ? nullptr : momentum[matrix];
    float* u = stack + static_cast<std::int64_t>(matrix) * gradient.rows * gradient.cols;
    (gradient.tall() ? momentum_rows_transposed : momentum_rows)(f, gradient, buffer, u, first, rows);
  });
}

void update_dense(const MatrixOps::UpdateRule& rule, const float* stack, std::span<const float> scales,
                  std::span<const MatrixView> parameters) {
  const float keep = 1.0F - rule.lr * rule.weight_decay;
  for_row_tiles(parameters, [&](std::size_t matrix, std::int64_t first, std::int64_t rows) {
    const MatrixView& parameter = parameters[matrix];
    const float* o = stack + static_cast<std::int64_t>(matrix) * parameter.rows * parameter.cols;
    (parameter.tall() ? update_rows_transposed : update_rows)(keep, rule.lr * scales[matrix], o, parameter, first,
                                                              rows);
    round_rows(parameter, first, rows);
  });
}

void update_factors(const MatrixTeam& team, const MatrixOps::UpdateRule& rule, std::int64_t rank, const float* basis,
                    const float* factor, std::span<const float> scales, std::span<const MatrixView> parameters) {
  if (parameters.empty()) return;
  const float keep = 1.0F - rule.lr * rule.weight_decay;
  const std::int64_t rows = std::min(parameters[0].rows, parameters[0].cols);
  const std::int64_t cols = std::max(parameters[0].rows, parameters[0].cols);
  const int m = static_cast<int>(rows), k = static_cast<int>(rank), n = static_cast<int>(cols);
  team.for_each(static_cast<std::int64_t>(parameters.size()), rows * cols, [&](std::int64_t i, int) {
    const MatrixView& w = parameters[static_cast<std::size_t>(i)];
    const float step = -rule.lr * scales[static_cast<std::size_t>(i)];
    const float* q = basis + i * rows * rank;
    const float* z = factor + i * rank * cols;
    const int stride = static_cast<int>(w.stride);
    if (w.tall()) {  // W = keep W + step Z^T Q^T
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasTrans, n, m, k, step, z, n, q, k, keep, w.data, stride);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, step, q, k, z, n, keep, w.data, stride);
    }
    round_rows(w, 0, w.rows);
  });
}

}  // namespace polaron::cpu

// What every backend demands of the arguments of MatrixOps (optimizer_ops.h); throws std::logic_error otherwise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>

#include "backend/optimizer_ops.h"

namespace polaron {

inline void require_argument(bool condition, const char* message) {
  if (!condition) throw std::logic_error(message);
}

inline void check_views(std::span<const MatrixView> views) {
  for (const MatrixView& view : views) {
    require_argument(std::minmax(view.rows, view.cols) == std::minmax(views[0].rows, views[0].cols),
                     "matrices of one group must have one shape, up to transposition");
    require_argument(view.stride >= view.cols, "a matrix's stride is less than its width");
  }
}

inline void check_stack(const StackShape& shape) {
  require_argument(shape.count >= 0 && shape.rows > 0 && shape.rows <= shape.cols,
                   "a stack's matrices must have rows <= cols");
}

inline void check_rank(std::int64_t rank, std::int64_t rows) {
  require_argument(rank >= 1 && rank <= rows, "the rank must be between 1 and the rows of the stack's matrices");
}

}  // namespace polaron

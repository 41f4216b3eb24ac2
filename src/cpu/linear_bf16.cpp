#include "cpu/linear_bf16.h"

#include <algorithm>

#include "cpu/activation.h"
#include "cpu/gemm_bf16.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// Rows and columns that are worked on at a time, as floats on the stack.
constexpr int64_t kRows = 16, kCols = kBlock;
struct Floats {
  alignas(64) float at[kRows * kCols];
};

void unpack_rows(int64_t rows, int64_t cols, const bf16* from, int64_t stride, Floats& to) {
  for (int64_t r = 0; r < rows; ++r) to_floats(from + r * stride, cols, to.at + r * kCols);
}
void round_rows(int64_t rows, int64_t cols, const Floats& from, bf16* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) to_bf16s(from.at + r * kCols, cols, to + r * stride);
}

// Calls body(row, rows, column, columns) for pieces of a block that fit into Floats.
template <class Body>
void for_pieces(const GemmBlock& block, Body&& body) {
  for (int64_t row = 0; row < block.rows; row += kRows) {
    for (int64_t col = 0; col < block.cols; col += kCols) {
      body(row, std::min(kRows, block.rows - row), col, std::min(kCols, block.cols - col));
    }
  }
}

}  // namespace

void Bf16ForwardEpilogue::apply(const GemmBlock& block) const {
  const auto finish = [&](float* values, int64_t first) {
    if (bias_ != nullptr) add_bias(block.rows, block.cols, bias_ + first, values, block.stride);
    if (activated_ == nullptr) return;
    for (int64_t r = 0; r < block.rows; ++r) round_in_place(values + r * block.stride, block.cols);
  };
  finish(block.values, block.col);
  if (block.second != nullptr) finish(block.second, half_ + block.col);
  if (activated_ == nullptr) return;
  for_pieces(block, [&](int64_t row, int64_t rows, int64_t col, int64_t cols) {
    const int64_t at = row * block.stride + col;
    Floats activated;
    activate_block(activation_,
                   {rows, cols, block.values + at, block.second != nullptr ? block.second + at : nullptr, block.stride},
                   activated.at, kCols);
    round_rows(rows, cols, activated, activated_ + (block.row + row) * stride_ + block.col + col, stride_);
  });
}

void Bf16DerivativeEpilogue::apply(const GemmBlock& block) const {
  for_pieces(block, [&](int64_t row, int64_t rows, int64_t col, int64_t cols) {
    const bf16* pre = pre_ + (block.row + row) * pre_stride_ + block.col + col;
    bf16* d_pre = d_pre_ + (block.row + row) * d_pre_stride_ + block.col + col;
    Floats gate, up;
    unpack_rows(rows, cols, pre, pre_stride_, gate);
    if (half_ > 0) unpack_rows(rows, cols, pre + half_, pre_stride_, up);
    differentiate_block(activation_, {rows, cols, gate.at, half_ > 0 ? up.at : nullptr, kCols},
                        block.values + row * block.stride + col, block.stride, gate.at, half_ > 0 ? up.at : nullptr,
                        kCols);
    round_rows(rows, cols, gate, d_pre, d_pre_stride_);
    if (half_ > 0) round_rows(rows, cols, up, d_pre + half_, d_pre_stride_);
  });
}

void activate_bf16_row(Activation activation, int64_t cols, const bf16* pre, const bf16* up, bf16* to) {
  constexpr int64_t kMost = kRows * kCols;
  for (int64_t col = 0; col < cols; col += kMost) {
    const int64_t count = std::min(kMost, cols - col);
    Floats gate, other, result;
    to_floats(pre + col, count, gate.at);
    if (up != nullptr) to_floats(up + col, count, other.at);
    activate_block(activation, {1, count, gate.at, up != nullptr ? other.at : nullptr, count}, result.at, count);
    to_bf16s(result.at, count, to + col);
  }
}

}  // namespace polaron::cpu

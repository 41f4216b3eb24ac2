// Tensor: a view of device memory with a type and a shape. Owns nothing, copies cheaply, never reads its data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "backend/bf16.h"

namespace polaron {

enum class DType : std::uint8_t { f32, bf16, i32 };

constexpr std::size_t size_of(DType type) { return type == DType::bf16 ? 2 : 4; }
constexpr const char* name_of(DType type) {
  return type == DType::f32 ? "fp32" : type == DType::bf16 ? "bf16" : "int32";
}

// Row-major matrix view [rows, cols]; consecutive rows are `stride` elements apart (stride >= cols). Tensors of more
// dimensions are passed as [product of the leading ones, last one], and the op's arguments say how to read the rows. A
// null `data` means "not there" where an op allows it (a bias, say).
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  Tensor() = default;
  Tensor(void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_)
      : Tensor(data_, dtype_, rows_, cols_, cols_) {}
  Tensor(void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_, std::int64_t stride_)
      : data(data_), dtype(dtype_), rows(rows_), cols(cols_), stride(stride_) {}

  explicit operator bool() const { return data != nullptr; }
  std::int64_t elements() const { return rows * cols; }
  bool contiguous() const { return stride == cols || rows <= 1; }

  float* f32() const { return static_cast<float*>(expect(DType::f32)); }
  std::int32_t* i32() const { return static_cast<std::int32_t*>(expect(DType::i32)); }
  polaron::bf16* bf16() const { return static_cast<polaron::bf16*>(expect(DType::bf16)); }

  // Rows [first, first + count) of this view.
  Tensor row_range(std::int64_t first, std::int64_t count) const {
    return {static_cast<std::byte*>(data) + static_cast<std::size_t>(first * stride) * size_of(dtype), dtype, count,
            cols, stride};
  }
  // Columns [first, first + count) of this view.
  Tensor column_range(std::int64_t first, std::int64_t count) const {
    return {static_cast<std::byte*>(data) + static_cast<std::size_t>(first) * size_of(dtype), dtype, rows, count,
            stride};
  }

 private:
  void* expect(DType wanted) const {
    if (dtype != wanted) throw std::logic_error("tensor holds another type than the op expects");
    return data;
  }
};

}  // namespace polaron

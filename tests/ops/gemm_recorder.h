// An epilogue that watches: what a matrix product hands over, and how often.
#pragma once

#include <cstdint>
#include <mutex>

#include "cpu/gemm.h"
#include "ops/reference.h"

namespace polaron::test {

// Counts how often each element is seen, keeps its value, and then adds `added` to it.
class Recorder final : public cpu::GemmEpilogue {
 public:
  Recorder(std::int64_t rows, std::int64_t cols, float added = 0.0F)
      : seen(rows, cols), values(rows, cols), added_(added) {}
  void apply(const cpu::GemmBlock& block) const override {
    const std::lock_guard lock(mutex_);
    for (std::int64_t r = 0; r < block.rows; ++r) {
      for (std::int64_t c = 0; c < block.cols; ++c) {
        record(block.row + r, block.col + c, block.values[r * block.stride + c]);
        if (block.second != nullptr) {
          record(block.row + r, seen.cols() / 2 + block.col + c, block.second[r * block.stride + c]);
        }
      }
    }
  }
  mutable Matrix seen, values;

 private:
  void record(std::int64_t row, std::int64_t col, float& value) const {
    seen.at(row, col) += 1.0F;
    values.at(row, col) = value;
    if (added_ != 0.0F) value += added_;
  }
  float added_;
  mutable std::mutex mutex_;
};

}  // namespace polaron::test

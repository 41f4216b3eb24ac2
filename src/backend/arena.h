// One allocation a class of memory, planned before anything is allocated: the same plan is printed by `polaron plan`
// and carved up by the run, so what is promised is what is taken.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/device.h"
#include "backend/tensor.h"

namespace polaron {

// Records named pieces and their offsets. Offsets are multiples of 256 bytes.
class ArenaPlan {
 public:
  struct Piece {
    std::string name;
    std::int64_t offset = 0;  // bytes
    DType dtype = DType::f32;
    std::int64_t rows = 0, cols = 0;
  };

  // Returns the piece's index, for Arena::tensor().
  std::int64_t add(std::string name, DType dtype, std::int64_t rows, std::int64_t cols) {
    Piece piece{std::move(name), bytes_, dtype, rows, cols};
    bytes_ += (rows * cols * static_cast<std::int64_t>(size_of(dtype)) + 255) / 256 * 256;
    pieces_.push_back(std::move(piece));
    return static_cast<std::int64_t>(pieces_.size()) - 1;
  }

  std::int64_t bytes() const { return bytes_; }
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  std::vector<Piece> pieces_;
  std::int64_t bytes_ = 0;
};

// The memory of a plan.
class Arena {
 public:
  Arena() = default;
  Arena(Device& device, const ArenaPlan& plan)
      : memory_(device, static_cast<std::size_t>(plan.bytes())), pieces_(plan.pieces()) {}

  // Index -1 stands for a piece that the plan left out: an absent tensor.
  Tensor tensor(std::int64_t index) const {
    if (index < 0) return {};
    const ArenaPlan::Piece& piece = pieces_.at(static_cast<std::size_t>(index));
    return {memory_.as<std::byte>() + piece.offset, piece.dtype, piece.rows, piece.cols};
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(memory_.bytes()); }

 private:
  DeviceBuffer memory_;
  std::vector<ArenaPlan::Piece> pieces_;
};

}  // namespace polaron

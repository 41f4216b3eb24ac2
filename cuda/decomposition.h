// Householder QR and singular value decompositions by cuSOLVER: the references that the batched paths are checked
// with. One matrix after the other; the library may let the host wait.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/optimizer_ops.h"
#include "cuda/device.h"
#include "cuda/gemm.h"
#include "cuda/matrix.h"

namespace polaron::cuda {

class Decompositions {
 public:
  // gemm and normalize outlive this. Throws Error(Exit::device) where cuSOLVER cannot be opened.
  Decompositions(Device& device, Gemm& gemm, Normalizer& normalize);
  Decompositions(const Decompositions&) = delete;
  Decompositions& operator=(const Decompositions&) = delete;
  ~Decompositions();

  // sketches [rows, rank] -> orthonormal bases of their columns that are not zero, in place; zero columns stay zero.
  void householder(Stream& stream, std::int64_t count, std::int64_t rows, std::int64_t rank, float* sketches);

  // MatrixOps::exact_polar.
  void exact_polar(Stream& stream, const StackShape& shape, float* stack);

  // What calls of these shapes keep on the device; for several shapes the largest of each.
  struct Room {
    std::int64_t floats = 0, integers = 0, work = 0;
    std::int64_t bytes() const { return 4 * (floats + integers + work); }
  };
  // Both open cuSOLVER for a moment.
  static Room householder_room(std::int64_t count, std::int64_t rows, std::int64_t rank);
  static Room exact_polar_room(const StackShape& shape);

 private:
  class Solver;

  Gemm& gemm_;
  Normalizer& normalize_;
  Scratch floats_, integers_, work_;
  std::unique_ptr<Solver> solver_;
};

}  // namespace polaron::cuda

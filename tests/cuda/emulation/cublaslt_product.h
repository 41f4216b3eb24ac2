// The products of the stand-in for cuBLASLt, when their turn on a stream has come.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace polaron::cuda::emulation {

inline bool has_bias(std::uint32_t epilogue) { return (epilogue & CUBLASLT_EPILOGUE_BIAS) != 0; }
inline bool has_aux(std::uint32_t epilogue) { return (epilogue & 128U) != 0; }

// Column-major, as the library reads it.
struct FakeOperand {
  const void* data;
  cudaDataType_t type;
  bool tf32;  // fp32 that is multiplied as TF32
  std::int64_t rows, cols, ld, batch_stride;
  bool transposed;
  float at(std::int64_t batch, std::int64_t row, std::int64_t col) const;
};

// d = epilogue(alpha op(a) op(b) + beta c) by an algorithm of FakeAlgorithm.
struct FakeProduct {
  FakeOperand a, b, c, bias, aux;
  void* d;
  int batch;
  std::int64_t d_ld, d_batch_stride;
  std::uint32_t epilogue;
  std::uint64_t algorithm;
  float alpha, beta;

  void operator()() const;

 private:
  float finished(float value, std::int64_t i, std::int64_t j) const;
};

}  // namespace polaron::cuda::emulation

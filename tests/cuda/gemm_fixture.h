// The fixture of the tests of Gemm, on the stand-in for cuBLASLt, and the products that they compare with.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/gemm.h"
#include "emulation/cublaslt.h"
#include "machine.h"

namespace polaron::test {

class CudaGemm : public testing::Test {
 protected:
  static constexpr double kTolerance = 2e-6;
  ~CudaGemm() override { cuda::emulation::fake_cublaslt() = cuda::emulation::FakeCublasLt(); }
  const Machine machine{cuda::emulation::Options{.lazy_streams = true}};
  cuda::Gemm gemm{machine.device()};
  void run(const cuda::GemmCall& call) { gemm(machine.stream(), call); }
};

// c = op(a) op(b) of the matrices' values, in double. a [m, k] or stored [k, m], and so on.
inline Doubles product(const Matrix& a, bool a_transposed, const Matrix& b, bool b_transposed) {
  const std::int64_t m = a_transposed ? a.cols() : a.rows(), k = a_transposed ? a.rows() : a.cols();
  const std::int64_t n = b_transposed ? b.rows() : b.cols();
  Doubles c;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (std::int64_t l = 0; l < k; ++l) {
        sum += static_cast<double>(a_transposed ? a.at(l, i) : a.at(i, l)) *
               static_cast<double>(b_transposed ? b.at(j, l) : b.at(l, j));
      }
      c.push_back(sum);
    }
  }
  return c;
}

inline cuda::GemmCall call_of(const Tensor& a, bool a_transposed, const Tensor& b, bool b_transposed, const Tensor& c) {
  cuda::GemmCall call;
  call.m = c.rows;
  call.n = c.cols;
  call.k = a_transposed ? a.rows : a.cols;
  call.a = cuda::GemmMatrix(a, a_transposed);
  call.b = cuda::GemmMatrix(b, b_transposed);
  call.c = c.data;
  call.c_dtype = c.dtype;
  call.c_stride = c.stride;
  return call;
}

}  // namespace polaron::test

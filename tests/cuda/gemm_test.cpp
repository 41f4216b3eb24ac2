// Gemm on the stand-in for cuBLASLt: its products, what it supports, and what it says to calls that fail or make no
// sense.
#include "cuda/gemm.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "gemm_fixture.h"
#include "support/errors.h"
#include "support/worse.h"

namespace polaron::test {
namespace {

using cuda::GemmCall;
using cuda::GemmEpilogue;
using cuda::GemmMatrix;
using cuda::emulation::fake_cublaslt;

TEST_F(CudaGemm, multiplies_every_combination_of_types_transposes_and_strides) {
  struct Types {
    DType operands, result;
  };
  struct Sizes {
    std::int64_t m, n, k;
  };
  for (const Types types : {Types{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}}) {
    for (const Sizes s : {Sizes{1, 1, 1}, {3, 5, 7}, {8, 16, 24}, {33, 2, 65}, {1, 40, 9}}) {
      for (const int transposes : {0, 1, 2, 3}) {
        for (const std::int64_t padding : {0, 3}) {
          const bool at = (transposes & 1) != 0, bt = (transposes & 2) != 0;
          const Matrix a = rounded_to(types.operands, at ? Matrix::random(s.k, s.m, 1) : Matrix::random(s.m, s.k, 1));
          const Matrix b = rounded_to(types.operands, bt ? Matrix::random(s.n, s.k, 2) : Matrix::random(s.k, s.n, 2));
          const Matrix before = rounded_to(types.result, Matrix::random(s.m, s.n, 3));
          const Array left(machine, a, types.operands, padding), right(machine, b, types.operands, 2 * padding);
          const Array result(machine, before, types.result, padding);
          GemmCall call = call_of(left, at, right, bt, result);
          call.alpha = -0.5F;
          for (const float beta : {0.0F, 2.0F}) {
            call.beta = beta;
            const Doubles was = result.values();
            Doubles expected = product(a, at, b, bt);
            for (std::size_t i = 0; i < expected.size(); ++i) {
              expected[i] = -0.5 * expected[i] + static_cast<double>(beta) * was[i];
            }
            run(call);
            expect_close(result.values(), expected, kTolerance, "product", s.n, 0.0, types.result);
          }
        }
      }
    }
  }
}

TEST_F(CudaGemm, multiplies_batches_and_shares_an_operand_of_batch_stride_zero) {
  constexpr std::int64_t kBatch = 3, kM = 5, kN = 7, kK = 4;
  const Matrix a = Matrix::random(kBatch * kM, kK, 1), b = Matrix::random(kN, kK, 2);
  const Array left(machine, a), right(machine, b), result(machine, Matrix(kBatch * kM, kN));
  GemmCall call = call_of(left.tensor().row_range(0, kM), false, right, true, result.tensor().row_range(0, kM));
  call.batch = kBatch;
  call.a.batch_stride = kM * kK;
  call.c_batch_stride = kM * kN;
  run(call);
  expect_close(result.values(), product(a, false, b, true), kTolerance, "stacked product", kN);
}

TEST_F(CudaGemm, adds_what_is_elsewhere_and_may_be_an_operand) {
  const Matrix a = Matrix::random(2 * 6, 6, 1), b = Matrix::random(2 * 6, 6, 2);
  for (const DType type : kActivationTypes) {
    for (const int addend : {0, 1}) {
      const Matrix left_values = rounded_to(type, a), right_values = rounded_to(type, b);
      const Array left(machine, left_values, type), right(machine, right_values, type);
      const Array result(machine, Matrix::filled(2 * 6, 6, 50.0F), type);  // not read
      GemmCall call = call_of(left.tensor().row_range(0, 6), false, right.tensor().row_range(0, 6), false,
                              result.tensor().row_range(0, 6));
      call.batch = 2;
      call.a.batch_stride = call.b.batch_stride = call.c_batch_stride = 36;
      call.alpha = 0.5F;
      call.beta = -2.0F;
      call.addend = addend == 0 ? left.tensor().data : right.tensor().data;
      Doubles expected;
      for (std::int64_t m = 0; m < 2; ++m) {
        for (std::int64_t i = 0; i < 6; ++i) {
          for (std::int64_t j = 0; j < 6; ++j) {
            double sum = 0.0;
            for (std::int64_t k = 0; k < 6; ++k)
              sum += static_cast<double>(left_values.at(6 * m + i, k)) *
                     static_cast<double>(right_values.at(6 * m + k, j));
            expected.push_back(0.5 * sum -
                               2.0 * static_cast<double>((addend == 0 ? left_values : right_values).at(6 * m + i, j)));
          }
        }
      }
      run(call);
      expect_close(result.values(), expected, kTolerance, "product and addend", 6, 0.0, type);
    }
  }
}

TEST_F(CudaGemm, epilogues_add_bias_apply_gelu_and_its_derivative) {
  for (const DType type : {DType::f32, DType::bf16}) {
    const Matrix a = rounded_to(type, Matrix::random(5, 16, 1, 0.3)), b = rounded_to(type, Matrix::random(16, 24, 2));
    const Matrix row = rounded_to(type, Matrix::random(1, 24, 3)), pre = rounded_to(type, Matrix::random(5, 24, 4));
    const Array left(machine, a, type), right(machine, b, type), bias(machine, row, type);
    const Array result(machine, Matrix(5, 24), type), aux(machine, pre, type, 8);
    GemmCall call = call_of(left, false, right, false, result);
    call.bias = bias.tensor().data;
    call.aux = aux.tensor().data;
    call.aux_stride = aux.tensor().stride;
    const Doubles plain = product(a, false, b, false);
    const auto gelu = [](double x) {
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    };
    const auto expect = [&](GemmEpilogue epilogue, const std::function<double(std::size_t)>& value) {
      call.epilogue = epilogue;
      ASSERT_TRUE(gemm.attempt(machine.stream(), call));
      Doubles expected;
      for (std::size_t i = 0; i < plain.size(); ++i) expected.push_back(value(i));
      expect_close(result.values(), expected, kTolerance, "epilogue " + std::to_string(static_cast<int>(epilogue)), 24,
                   0.0, type);
    };
    const auto biased = [&](std::size_t i) { return plain[i] + static_cast<double>(row.at(0, i % 24)); };
    const Doubles before = aux.values();
    expect(GemmEpilogue::dgelu,
           [&](std::size_t i) { return plain[i] * (gelu(before[i] + 1e-5) - gelu(before[i] - 1e-5)) / 2e-5; });
    expect(GemmEpilogue::bias, biased);
    EXPECT_EQ(aux.values(), before);
    expect(GemmEpilogue::gelu_aux, [&](std::size_t i) { return gelu(plain[i]); });
    expect_close(aux.values(), plain, kTolerance, "aux", 24, 0.0, type);
    expect(GemmEpilogue::gelu_aux_bias, [&](std::size_t i) { return gelu(biased(i)); });
    Doubles expected;
    for (std::size_t i = 0; i < plain.size(); ++i) expected.push_back(biased(i));
    expect_close(aux.values(), expected, kTolerance, "aux", 24, 0.0, type);
  }
}

TEST_F(CudaGemm, says_beforehand_what_the_library_does_not_support) {
  const Array a(machine, Matrix::random(8, 8, 1)), bias(machine, Matrix::random(1, 9, 2)), c(machine, Matrix(8, 8));
  GemmCall call = call_of(a, false, a, false, c);
  call.epilogue = GemmEpilogue::bias;
  call.bias = bias.tensor().f32() + 1;
  EXPECT_FALSE(gemm.attempt(machine.stream(), call));
  const int asked = fake_cublaslt().heuristics;
  EXPECT_FALSE(gemm.attempt(machine.stream(), call));
  EXPECT_EQ(fake_cublaslt().heuristics, asked);
  call.bias = bias.tensor().f32();
  EXPECT_TRUE(gemm.attempt(machine.stream(), call));
}

TEST_F(CudaGemm, takes_the_next_algorithm_where_the_library_refuses_to_run_its_favourite) {
  const Matrix values = Matrix::random(8, 8, 1);
  const Array a(machine, values), c(machine, Matrix(8, 8));
  gemm.set_timing(false);
  fake_cublaslt().failing_function = "cublasLtMatmul";  // once
  fake_cublaslt().failure = CUBLAS_STATUS_NOT_SUPPORTED;
  run(call_of(a, false, a, false, c));
  expect_close(c.values(), product(values, false, values, false), kTolerance, "product", 8);
  const int taken = fake_cublaslt().ran.back();
  run(call_of(a, false, a, false, c));
  EXPECT_EQ(fake_cublaslt().ran.back(), taken);
  EXPECT_NE(taken, cuda::emulation::kManyLanes);  // the favourite
}

TEST_F(CudaGemm, an_epilogue_that_is_offered_and_never_runs_counts_as_missing) {
  const Matrix before = Matrix::random(8, 8, 3);
  const Array a(machine, Matrix::random(8, 8, 1)), bias(machine, Matrix::random(1, 8, 2)), c(machine, before);
  gemm.set_timing(false);
  fake_cublaslt().epilogues_run = false;
  GemmCall call = call_of(a, false, a, false, c);
  call.epilogue = GemmEpilogue::bias;
  call.bias = bias.tensor().data;
  EXPECT_FALSE(gemm.attempt(machine.stream(), call));
  const int asked = fake_cublaslt().heuristics;
  EXPECT_FALSE(gemm.attempt(machine.stream(), call));
  EXPECT_EQ(fake_cublaslt().heuristics, asked);
  EXPECT_EQ(c.values(), Array(machine, before).values());
}

// TF32 keeps 10 bits after the point of what is multiplied: products of such numbers are exact, of others they are not.
TEST_F(CudaGemm, multiplies_in_tf32_only_where_the_call_and_its_owner_allow_it) {
  const Matrix values = Matrix::random(8, 8, 1);
  const Array a(machine, values), c(machine, Matrix(8, 8));
  const Doubles exact = product(values, false, values, false);
  double largest = 0.0;
  for (std::int64_t i = 0; i < 64; ++i)
    largest = std::max(largest, std::fabs(static_cast<double>(values.at(i / 8, i % 8))));
  for (const bool call_allows : {false, true}) {
    for (const bool owner_allows : {false, true}) {
      gemm.set_tf32(owner_allows);
      GemmCall call = call_of(a, false, a, false, c);
      call.tf32 = call_allows;
      run(call);
      const Doubles actual = c.values();
      double error = 0.0;
      for (std::size_t i = 0; i < exact.size(); ++i) error = worse(error, std::fabs(actual[i] - exact[i]));
      if (call_allows && owner_allows) {
        EXPECT_GT(error, 2e-5);
        EXPECT_LT(error, 8 * largest * largest * 2 * 0x1p-11);  // 8 products of two numbers
      } else {
        EXPECT_LT(error, 1e-6);
      }
    }
  }
}

TEST_F(CudaGemm, failures_name_function_shape_and_status) {
  const Array a(machine, Matrix::random(8, 16, 1)), b(machine, Matrix::random(16, 4, 2)), c(machine, Matrix(8, 4));
  for (const char* function : {"cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmul"}) {
    gemm.set_timing(false);
    fake_cublaslt().failing_function = function;
    fake_cublaslt().failure = CUBLAS_STATUS_EXECUTION_FAILED;
    expect_parts(error_of(Exit::device, [&] { run(call_of(a, false, b, false, c)); }),
                 {function, "[8, 16] x [16, 4]", "fp32 to fp32", "CUBLAS_STATUS_EXECUTION_FAILED"});
  }
  GemmCall unsupported = call_of(a, false, b, false, c);
  unsupported.epilogue = GemmEpilogue::bias;
  unsupported.bias = c.tensor().data;
  fake_cublaslt().epilogues = false;
  expect_parts(error_of(Exit::device, [&] { run(unsupported); }), {"epilogue bias", "CUBLAS_STATUS_NOT_SUPPORTED"});
}

TEST_F(CudaGemm, refuses_calls_that_make_no_sense) {
  const Array a(machine, Matrix::random(8, 8, 1)), c(machine, Matrix(8, 8));
  const Array half(machine, Matrix(8, 8), DType::bf16);
  const GemmCall sound = call_of(a, false, a, false, c);
  const std::function<void(GemmCall&)> spoil[] = {[&](GemmCall& call) { call.b = GemmMatrix(half.tensor()); },
                                                  [](GemmCall& call) { call.c_dtype = DType::bf16; },
                                                  [](GemmCall& call) { call.k = 0; },
                                                  [](GemmCall& call) { call.a.stride = 7; },
                                                  [](GemmCall& call) { call.c_stride = 7; },
                                                  [](GemmCall& call) { call.a.data = nullptr; },
                                                  [](GemmCall& call) { call.epilogue = GemmEpilogue::bias; },
                                                  [](GemmCall& call) {
                                                    call.epilogue = GemmEpilogue::dgelu;
                                                    call.aux = call.c;
                                                    call.aux_stride = 8;
                                                  }};
  for (const auto& change : spoil) {
    GemmCall call = sound;
    change(call);
    EXPECT_THROW(run(call), std::logic_error);
  }
  GemmCall nothing = sound;
  nothing.m = 0;
  run(nothing);
  EXPECT_EQ(gemm.kinds(), 0U);
}

}  // namespace
}  // namespace polaron::test

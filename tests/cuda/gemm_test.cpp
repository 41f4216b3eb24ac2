// Gemm on the stand-in for cuBLASLt: what the library is told, which algorithm is taken, what is kept and what is said.
#include "cuda/gemm.h"

#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/cublaslt.h"
#include "emulation/runtime.h"
#include "machine.h"
#include "support/errors.h"

namespace polaron::test {
namespace {

using cuda::Gemm;
using cuda::GemmCall;
using cuda::GemmEpilogue;
using cuda::GemmMatrix;
using cuda::emulation::fake_cublaslt;
using cuda::emulation::FakeCublasLt;

constexpr double kTolerance = 2e-6;

class CudaGemm : public testing::Test {
 protected:
  ~CudaGemm() override { fake_cublaslt() = FakeCublasLt(); }
  const Machine machine{cuda::emulation::Options{.lazy_streams = true}};
  Gemm gemm{machine.device()};
  void run(const GemmCall& call) { gemm(machine.stream(), call); }
};

// c = op(a) op(b) of the matrices' values, in double. a [m, k] or stored [k, m], and so on.
Doubles product(const Matrix& a, bool a_transposed, const Matrix& b, bool b_transposed) {
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

GemmCall call_of(const Tensor& a, bool a_transposed, const Tensor& b, bool b_transposed, const Tensor& c) {
  GemmCall call;
  call.m = c.rows;
  call.n = c.cols;
  call.k = a_transposed ? a.rows : a.cols;
  call.a = GemmMatrix(a, a_transposed);
  call.b = GemmMatrix(b, b_transposed);
  call.c = c.data;
  call.c_dtype = c.dtype;
  call.c_stride = c.stride;
  return call;
}

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

TEST_F(CudaGemm, plans_a_kind_of_call_once_and_tells_kinds_apart) {
  const Matrix values = Matrix::random(16, 16, 1);
  const Array a(machine, values), b(machine, values), c(machine, values), other(machine, values);
  const GemmCall call = call_of(a, false, b, false, c);
  run(call);
  EXPECT_EQ(gemm.kinds(), 1U);
  const int asked = fake_cublaslt().heuristics;
  GemmCall again = call;  // other addresses and scalars
  again.c = other.tensor().data;
  again.alpha = 3.0F;
  run(again);
  EXPECT_EQ(gemm.kinds(), 1U);
  EXPECT_EQ(fake_cublaslt().heuristics, asked);

  const std::function<void(GemmCall&)> changes[] = {[](GemmCall& other_call) { other_call.a.transposed = true; },
                                                    [](GemmCall& other_call) { other_call.b.transposed = true; },
                                                    [](GemmCall& other_call) { other_call.m = 8; },
                                                    [](GemmCall& other_call) { other_call.beta = 1.0F; },
                                                    [](GemmCall& other_call) {
                                                      other_call.n = other_call.k = 12;
                                                      other_call.c = static_cast<float*>(other_call.c) + 1;
                                                    }};
  std::size_t kinds = 1;
  for (const auto& change : changes) {
    GemmCall changed = call;
    change(changed);
    run(changed);
    EXPECT_EQ(gemm.kinds(), ++kinds);
  }
}

TEST_F(CudaGemm, takes_the_fastest_algorithm_and_its_bits) {
  const Matrix a = Matrix::random(8, 200, 1), b = Matrix::random(200, 8, 2);
  const Array left(machine, a), right(machine, b);
  std::vector<std::vector<std::byte>> results;
  for (const int fastest : {cuda::emulation::kManyLanes, cuda::emulation::kFewLanes, cuda::emulation::kSplit}) {
    fake_cublaslt().milliseconds = {2.0F, 2.0F, 2.0F, 1.0F};
    fake_cublaslt().milliseconds[fastest] = 1.5F;
    const Array result(machine, Matrix(8, 8));
    Gemm fresh(machine.device());
    fresh(machine.stream(), call_of(left, false, right, false, result));
    results.push_back(result.bits());
    EXPECT_EQ(fake_cublaslt().ran.back(), fastest);
    fake_cublaslt().ran.clear();
    fresh(machine.stream(), call_of(left, false, right, false, result));
    EXPECT_EQ(result.bits(), results.back());
    EXPECT_EQ(fake_cublaslt().ran, std::vector<int>{fastest});
  }
  EXPECT_NE(results[0], results[1]);
  EXPECT_NE(results[0], results[2]);
}

TEST_F(CudaGemm, never_takes_an_algorithm_whose_sums_depend_on_timing) {
  const Array a(machine, Matrix::random(8, 64, 1)), b(machine, Matrix::random(64, 8, 2)), c(machine, Matrix(8, 8));
  run(call_of(a, false, b, false, c));  // the racing one would be the fastest, and is the library's favourite
  machine.stream().synchronize();
  for (const int algorithm : fake_cublaslt().ran) EXPECT_NE(algorithm, cuda::emulation::kRacing);
}

TEST_F(CudaGemm, a_small_advantage_or_no_timing_leaves_the_librarys_favourite) {
  const Array a(machine, Matrix::random(8, 64, 1)), b(machine, Matrix::random(64, 8, 2)), c(machine, Matrix(8, 8));
  fake_cublaslt().milliseconds = {2.0F, 1.96F, 1.99F, 1.0F};
  run(call_of(a, false, b, false, c));
  machine.stream().synchronize();
  EXPECT_EQ(fake_cublaslt().ran.back(), cuda::emulation::kManyLanes);

  fake_cublaslt().milliseconds = {2.0F, 0.5F, 2.0F, 1.0F};
  fake_cublaslt().ran.clear();
  Gemm untimed(machine.device());
  untimed.set_timing(false);
  untimed(machine.stream(), call_of(a, false, b, false, c));
  machine.stream().synchronize();
  EXPECT_EQ(fake_cublaslt().ran, std::vector<int>{cuda::emulation::kManyLanes});
}

TEST_F(CudaGemm, timing_leaves_results_that_are_added_to_alone) {
  const Matrix a = Matrix::random(8, 8, 1), before = Matrix::random(8, 8, 2);
  const Array left(machine, a), result(machine, before, DType::f32, 3);
  GemmCall call = call_of(left, false, left, true, result);
  call.beta = 1.0F;
  run(call);
  EXPECT_GT(fake_cublaslt().heuristics, 0);
  Doubles expected = product(a, false, a, true);
  const Doubles was = before.values();
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += was[i];
  expect_close(result.values(), expected, kTolerance, "sum", 8);
  EXPECT_GT(fake_cublaslt().ran.size(), 3U) << "no timing took place";
}

TEST_F(CudaGemm, timing_without_memory_for_it_takes_the_librarys_favourite) {
  const Matrix a = Matrix::random(8, 8, 1);
  const Array left(machine, a), result(machine, Matrix(8, 8));
  fake_cublaslt().milliseconds = {2.0F, 0.5F, 2.0F, 1.0F};
  GemmCall call = call_of(left, false, left, false, result);
  run(call);  // takes the workspace
  call.beta = 1.0F;
  cuda::emulation::fail_next("cudaMalloc", cudaErrorMemoryAllocation);
  run(call);
  machine.stream().synchronize();
  EXPECT_EQ(fake_cublaslt().ran.back(), cuda::emulation::kManyLanes);
}

TEST_F(CudaGemm, plans_carry_the_choices_to_another_object) {
  const Array a(machine, Matrix::random(8, 64, 1)), b(machine, Matrix::random(64, 8, 2)), c(machine, Matrix(8, 8));
  const GemmCall call = call_of(a, false, b, false, c);
  fake_cublaslt().milliseconds = {2.0F, 2.0F, 1.0F, 1.0F};
  run(call);
  machine.stream().synchronize();
  const std::vector<std::byte> plans = gemm.plans();

  fake_cublaslt().milliseconds = {1.0F, 2.0F, 2.0F, 1.0F};
  Gemm other(machine.device());
  ASSERT_TRUE(other.set_plans(plans));
  EXPECT_EQ(other.plans(), plans);
  fake_cublaslt().ran.clear();
  other(machine.stream(), call);
  machine.stream().synchronize();
  EXPECT_EQ(fake_cublaslt().ran, std::vector<int>{cuda::emulation::kSplit});

  // They replace what an object had chosen for itself.
  Gemm third(machine.device());
  third(machine.stream(), call);
  ASSERT_TRUE(third.set_plans(plans));
  fake_cublaslt().ran.clear();
  third(machine.stream(), call);
  machine.stream().synchronize();
  EXPECT_EQ(fake_cublaslt().ran.back(), cuda::emulation::kSplit);
}

TEST_F(CudaGemm, plans_of_another_library_device_or_format_are_declined_and_damaged_ones_refused) {
  const Array a(machine, Matrix::random(8, 8, 1)), c(machine, Matrix(8, 8));
  run(call_of(a, false, a, false, c));
  std::vector<std::byte> plans = gemm.plans();
  fake_cublaslt().version += 1;
  Gemm newer(machine.device());
  EXPECT_FALSE(newer.set_plans(plans));
  newer(machine.stream(), call_of(a, false, a, false, c));  // plans for itself
  EXPECT_FALSE(gemm.set_plans(newer.plans()));
  fake_cublaslt().version -= 1;
  cuda::emulation::fake_device().name = "another device";
  const Machine elsewhere{cuda::emulation::Options{}};
  cuda::emulation::fake_device() = {};
  EXPECT_FALSE(Gemm(elsewhere.device()).set_plans(plans));
  std::vector<std::byte> older = plans;
  older[7] = std::byte{'1'};  // behind "plngemm"
  EXPECT_FALSE(gemm.set_plans(older));

  const auto refused = [&](const std::vector<std::byte>& bytes) {
    try {
      gemm.set_plans(bytes);
    } catch (const Error& error) {
      return error.code() == Exit::data;
    }
    return false;
  };
  std::vector<std::byte> shorter(plans.begin(), plans.end() - 1), other = plans;
  other[0] ^= std::byte{1};
  EXPECT_TRUE(refused({}) && refused(shorter) && refused(other));
  EXPECT_TRUE(gemm.set_plans(plans));
}

TEST_F(CudaGemm, an_algorithm_that_is_offered_but_cannot_run_is_passed_over) {
  const Matrix a = Matrix::random(8, 64, 1), b = Matrix::random(64, 8, 2);
  const Array left(machine, a), right(machine, b), c(machine, Matrix(8, 8));
  fake_cublaslt().milliseconds = {1.0F, 2.0F, 3.0F, 1.0F};
  fake_cublaslt().failing_function = "cublasLtMatmul";
  fake_cublaslt().failure = CUBLAS_STATUS_NOT_SUPPORTED;
  run(call_of(left, false, right, false, c));
  expect_close(c.values(), product(a, false, b, false), kTolerance, "product", 8);
  EXPECT_EQ(fake_cublaslt().ran.back(), cuda::emulation::kFewLanes);
}

TEST_F(CudaGemm, a_stored_choice_that_cannot_run_is_made_again) {
  const Matrix a = Matrix::random(8, 64, 1), b = Matrix::random(64, 8, 2);
  const Array left(machine, a), right(machine, b), c(machine, Matrix(8, 8));
  run(call_of(left, false, right, false, c));
  std::vector<std::byte> plans = gemm.plans();
  // Behind the last choice's kind stands its algorithm, which begins with the version it is of.
  plans[plans.size() - sizeof(cublasLtMatmulAlgo_t)] ^= std::byte{0xFF};
  Gemm other(machine.device());
  ASSERT_TRUE(other.set_plans(plans));
  other(machine.stream(), call_of(left, false, right, false, c));
  expect_close(c.values(), product(a, false, b, false), kTolerance, "product", 8);
  EXPECT_EQ(other.plans(), gemm.plans());
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
      ASSERT_TRUE(gemm.supports(call));
      run(call);
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
  EXPECT_FALSE(gemm.supports(call));
  const int asked = fake_cublaslt().heuristics;
  EXPECT_FALSE(gemm.supports(call));
  EXPECT_EQ(fake_cublaslt().heuristics, asked);
  call.bias = bias.tensor().f32();
  EXPECT_TRUE(gemm.supports(call));
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

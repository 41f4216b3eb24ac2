// The plans of Gemm on the stand-in for cuBLASLt: which algorithm is taken, what is kept, and how choices are carried
// to another Gemm.
#include <functional>
#include <vector>

#include "base/error.h"
#include "emulation/runtime.h"
#include "gemm_fixture.h"

namespace polaron::test {
namespace {

using cuda::Gemm;
using cuda::GemmCall;
using cuda::emulation::fake_cublaslt;

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

TEST_F(CudaGemm, a_stored_choice_that_is_refused_when_it_is_to_run_is_made_again) {
  const Matrix a = Matrix::random(8, 64, 1), b = Matrix::random(64, 8, 2);
  const Array left(machine, a), right(machine, b), c(machine, Matrix(8, 8));
  run(call_of(left, false, right, false, c));
  Gemm other(machine.device());
  ASSERT_TRUE(other.set_plans(gemm.plans()));
  fake_cublaslt().failing_function = "cublasLtMatmul";
  fake_cublaslt().failure = CUBLAS_STATUS_NOT_SUPPORTED;
  other(machine.stream(), call_of(left, false, right, false, c));
  expect_close(c.values(), product(a, false, b, false), kTolerance, "product", 8);
}

TEST_F(CudaGemm, a_plan_suits_every_call_of_its_kind) {
  const Matrix a = Matrix::random(8, 64, 1), b = Matrix::random(64, 8, 2);
  const Array left(machine, a), right(machine, b);
  // The result on 16 bytes and what is added on 4, then the other way round: one kind.
  for (const bool shifted : {false, true}) {
    const Array result(machine, Matrix(9, 8)), addend(machine, Matrix(9, 8));
    GemmCall call = call_of(left, false, right, false, result);
    call.m = 8;
    call.beta = 1.0F;
    call.c = static_cast<float*>(call.c) + (shifted ? 1 : 0);
    call.addend = static_cast<const float*>(Tensor(addend).data) + (shifted ? 0 : 1);
    run(call);
  }
  EXPECT_EQ(gemm.kinds(), 1U);
}

}  // namespace
}  // namespace polaron::test

// The engine behind the linear layers, on products of small integers: these are exact in fp32, so that every way of
// cutting a product into rounds, passes, chunks, strips and threads must give the very same numbers as OpenBLAS.
#include "cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/blas.h"
#include "ops/gemm_product.h"
#include "ops/gemm_recorder.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

using cpu::Gemm;
using cpu::GemmArgs;
using cpu::GemmBlock;
using cpu::GemmEngine;

// Two operands and what OpenBLAS makes of them.
struct Product {
  Product(const Sizes& s, bool a_transposed, bool b_transposed)
      : a(integers<Matrix>(a_transposed ? s.k : s.m, a_transposed ? s.m : s.k, 1, 3)),
        b(integers<Matrix>(b_transposed ? s.n : s.k, b_transposed ? s.k : s.n, 2, 1)),
        expected(s.m, s.n) {
    set_operands(args, s, a, a_transposed, b, b_transposed);
    cpu::sgemm(a_transposed, b_transposed, s.m, s.n, s.k, args.a, args.lda, args.b, args.ldb, 0.0F,
               expected.tensor().f32(), s.n);
  }
  void store(Matrix& c) {
    args.c = c.tensor().f32();
    args.ldc = c.tensor().stride;
  }

  Matrix a, b, expected;
  GemmArgs args;
};

void expect_equal(const Matrix& actual, const Matrix& expected, double added, const std::string& what) {
  for (std::int64_t r = 0; r < expected.rows(); ++r) {
    for (std::int64_t c = 0; c < expected.cols(); ++c) {
      ASSERT_EQ(static_cast<double>(actual.at(r, c)), static_cast<double>(expected.at(r, c)) + added)
          << what << " at [" << r << ", " << c << "]";
    }
  }
}

class GemmEngines : public testing::TestWithParam<GemmEngine> {
 protected:
  Gemm gemm_{GetParam()};
};

TEST_P(GemmEngines, every_cut_gives_the_exact_product) {
  // In turn: tiles' edges; several rounds; several passes and rounds; several chunks of columns.
  for (const Sizes& s : {Sizes{29, 70, 50}, Sizes{700, 45, 1000}, Sizes{400, 100, 2300}, Sizes{200, 1100, 1500}}) {
    for (const bool a_transposed : {false, true}) {
      for (const bool b_transposed : {false, true}) {
        Product product(s, a_transposed, b_transposed);
        for (const int threads : {1, 2, 5}) {
          const Threads fixed(threads);
          Matrix c = Matrix::filled(s.m, s.n, 5.0F, 2);
          product.store(c);
          product.args.accumulate = threads != 2;
          gemm_(product.args);
          expect_equal(c, product.expected, product.args.accumulate ? 5.0 : 0.0, describe(s, threads));
        }
      }
    }
  }
}

TEST_P(GemmEngines, sums_of_a_transposed_operand_come_along) {
  for (const Sizes& s : {Sizes{1, 1, 1}, Sizes{17, 5, 900}, Sizes{130, 1100, 500}}) {
    expect_sums_come_along<Product>(gemm_, s);
  }
}

TEST_P(GemmEngines, the_epilogue_sees_each_finished_element_once) {
  for (const Sizes& s : {Sizes{1, 2, 1}, Sizes{40, 90, 30}, Sizes{300, 130, 1000}, Sizes{310, 330, 2300}}) {
    for (const bool b_transposed : {false, true}) {
      for (const bool halves : {false, true}) {
        for (const bool stored : {false, true}) {
          if (halves && !stored) continue;
          const Threads fixed(3);
          Product product(s, false, b_transposed);
          Matrix c(s.m, s.n, 3);
          if (stored) product.store(c);
          product.args.halves = halves;
          const Recorder recorder(s.m, s.n);
          gemm_(product.args, &recorder);
          expect_equal(recorder.seen, Matrix::filled(s.m, s.n, 1.0F), 0.0, "times seen");
          expect_equal(recorder.values, product.expected, 0.0, "values seen");
          if (stored) expect_equal(c, product.expected, 0.0, "values stored");
        }
      }
    }
  }
}

TEST_P(GemmEngines, a_product_over_no_depth_is_zero) {
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      Matrix operand = Matrix::filled(40, 40, 3.0F);
      Matrix c = Matrix::filled(33, 7, 2.0F);
      GemmArgs args;
      args.m = 33;
      args.n = 7;
      args.a_transposed = a_transposed;
      args.b_transposed = b_transposed;
      args.a = args.b = operand.tensor().f32();
      args.lda = args.ldb = 40;
      args.c = c.tensor().f32();
      args.ldc = 7;
      args.accumulate = true;
      gemm_(args);
      EXPECT_TRUE(c.same_bits(Matrix::filled(33, 7, 2.0F)));
      Matrix sums = Matrix::filled(1, 33, 2.0F);
      if (a_transposed) args.a_sums = sums.tensor().f32();
      args.accumulate = false;
      gemm_(args);
      EXPECT_TRUE(c.same_bits(Matrix(33, 7)));
      EXPECT_TRUE(sums.same_bits(a_transposed ? Matrix(1, 33) : Matrix::filled(1, 33, 2.0F)));
    }
  }
}

TEST_P(GemmEngines, a_transposed_operand_cannot_be_combined_with_halves_or_an_unstored_product) {
  Product product({4, 4, 4}, true, false);
  EXPECT_THROW(gemm_(product.args), std::logic_error);
  Matrix c(4, 4);
  product.store(c);
  product.args.halves = true;
  EXPECT_THROW(gemm_(product.args), std::logic_error);
}

INSTANTIATE_TEST_SUITE_P(Engines, GemmEngines, testing::Values(GemmEngine::tiles, GemmEngine::blas),
                         [](const auto& engine) { return engine.param == GemmEngine::tiles ? "tiles" : "blas"; });

}  // namespace
}  // namespace polaron::test

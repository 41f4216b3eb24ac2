// Products of bf16 matrices. On small integers sums are exact in fp32, so that every way of cutting a product into
// chunks, rounds, passes, strips and threads must give the very same numbers; on others the error is bounded by that of
// fp32 sums and one rounding.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cpu/gemm.h"
#include "ops/bf16_matrix.h"
#include "ops/gemm_product.h"
#include "ops/gemm_recorder.h"
#include "ops/gemm_units.h"
#include "ops/same_bits.h"

namespace polaron::test {
namespace {

using cpu::Bf16GemmArgs;
using cpu::CacheSizes;
using cpu::Gemm;
using cpu::GemmBlock;
using cpu::GemmEngine;

// Two operands, their product in double precision, and the sums of its terms' sizes.
struct Product {
  Product(const Sizes& s, bool a_transposed, bool b_transposed, bool of_integers = true)
      : a(operand(a_transposed ? s.k : s.m, a_transposed ? s.m : s.k, 1, 3, of_integers)),
        b(operand(b_transposed ? s.n : s.k, b_transposed ? s.k : s.n, 2, 1, of_integers)),
        expected(s.m * s.n, 0.0),
        sizes(s.m * s.n, 0.0) {
    set_operands(args, s, a, a_transposed, b, b_transposed);
    const Doubles left = a.values(), right = b.values();
    for (std::int64_t i = 0; i < s.m; ++i) {
      for (std::int64_t p = 0; p < s.k; ++p) {
        const double x = a_transposed ? left[p * s.m + i] : left[i * s.k + p];
        for (std::int64_t j = 0; j < s.n; ++j) {
          const double y = b_transposed ? right[j * s.k + p] : right[p * s.n + j];
          expected[i * s.n + j] += x * y;
          sizes[i * s.n + j] += std::abs(x * y);
        }
      }
    }
  }
  static Bf16Matrix operand(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t padding,
                            bool of_integers) {
    return of_integers ? integers<Bf16Matrix>(rows, cols, seed, padding)
                       : Bf16Matrix::random(rows, cols, seed, 1.0, 0.1, padding);
  }
  void store(Matrix& c) {
    args.c = c.tensor().f32();
    args.c_bf16 = nullptr;
    args.ldc = c.tensor().stride;
  }
  void store(Bf16Matrix& c) {
    args.c = nullptr;
    args.c_bf16 = c.tensor().bf16();
    args.ldc = c.tensor().stride;
  }
  // What fp32 sums may be off by, whatever their order.
  Doubles errors() const {
    Doubles result = sizes;
    for (double& e : result) e *= (8.0 + 2.0 * std::sqrt(static_cast<double>(args.k))) * std::ldexp(1.0, -24);
    return result;
  }

  Bf16Matrix a, b;
  Doubles expected, sizes;
  Bf16GemmArgs args;
};

void expect_exact(const Matrix& actual, const Doubles& expected, double added, const std::string& what) {
  for (std::int64_t i = 0; i < actual.rows() * actual.cols(); ++i) {
    ASSERT_EQ(static_cast<double>(actual.at(i / actual.cols(), i % actual.cols())), expected[i] + added)
        << what << " at [" << i / actual.cols() << ", " << i % actual.cols() << "]";
  }
}
void expect_exact(const Bf16Matrix& actual, const Doubles& expected, double added, const std::string& what) {
  for (std::int64_t i = 0; i < actual.rows() * actual.cols(); ++i) {
    const double rounded = static_cast<double>(to_float(to_bf16(static_cast<float>(expected[i] + added))));
    ASSERT_EQ(actual.at(i / actual.cols(), i % actual.cols()), rounded)
        << what << " at [" << i / actual.cols() << ", " << i % actual.cols() << "]";
  }
}

// In turn: rounds of a single step and narrow chunks; rounds of a few steps; as on a real machine.
const CacheSizes kCaches[] = {{64 << 10}, {256 << 10}, {2048 << 10}};

class Bf16Gemm : public OnUnits {};

TEST_P(Bf16Gemm, every_cut_gives_the_exact_product) {
  for (const CacheSizes& caches : kCaches) {
    Gemm gemm(GemmEngine::tiles, unit(), caches);
    for (const Sizes& s :
         {Sizes{37, 70, 50}, Sizes{3, 1, 1}, Sizes{1, 17, 33}, Sizes{70, 33, 203}, Sizes{20, 350, 90}}) {
      for (const bool a_transposed : {false, true}) {
        for (const bool b_transposed : {false, true}) {
          Product product(s, a_transposed, b_transposed);
          for (const int threads : {1, 2, 5}) {
            const Threads fixed(threads);
            const std::string what = describe(s, threads);
            product.args.accumulate = threads != 2;
            const double added = product.args.accumulate ? 5.0 : 0.0;
            Matrix c = Matrix::filled(s.m, s.n, 5.0F, 2);
            product.store(c);
            gemm(product.args);
            expect_exact(c, product.expected, added, what);
            Bf16Matrix rounded(Matrix::filled(s.m, s.n, 5.0F), 3);
            product.store(rounded);
            gemm(product.args);
            expect_exact(rounded, product.expected, added, what + ", bf16");
          }
        }
      }
    }
  }
}

TEST_P(Bf16Gemm, a_deep_product_is_off_by_fp32_sums_and_one_rounding) {
  Gemm gemm(GemmEngine::tiles, unit());
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      const Sizes s{40, 66, 1501};
      Product product(s, a_transposed, b_transposed, false);
      const Doubles errors = product.errors();
      Matrix c(s.m, s.n);
      product.store(c);
      gemm(product.args);
      const Doubles values = c.values();
      for (std::size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], product.expected[i], errors[i]);
      Bf16Matrix rounded(s.m, s.n);
      product.store(rounded);
      gemm(product.args);
      expect_rounded(rounded, product.expected, errors, "product");
      for (std::int64_t i = 0; i < s.m * s.n; ++i) {  // one rounding, of the very same sums
        ASSERT_EQ(rounded.tensor().bf16()[i].bits, to_bf16(c.tensor().f32()[i]).bits);
      }
    }
  }
}

// Units may read rows of A where they lie when these begin on cache lines.
TEST_P(Bf16Gemm, aligned_rows_give_the_same_bits_as_others) {
  for (const Sizes& s : {Sizes{70, 40, 96}, Sizes{64, 33, 100}, Sizes{96, 70, 1344}}) {
    for (const bool b_transposed : {false, true}) {
      Product product(s, false, b_transposed, false);
      Gemm gemm(GemmEngine::tiles, unit());
      Matrix expected(s.m, s.n), actual(s.m, s.n);
      product.store(expected);
      gemm(product.args);

      const std::int64_t stride = (s.k + 31) / 32 * 32;
      std::vector<bf16> memory(static_cast<std::size_t>(s.m * stride + 32), to_bf16(NAN));
      const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
      bf16* const rows = memory.data() + ((64 - address % 64) % 64) / sizeof(bf16);
      for (std::int64_t r = 0; r < s.m; ++r) std::copy_n(product.args.a + r * product.args.lda, s.k, rows + r * stride);
      product.args.a = rows;
      product.args.lda = stride;
      product.store(actual);
      gemm(product.args);
      EXPECT_TRUE(actual.same_bits(expected)) << s.m << ", " << s.k;
    }
  }
}

TEST_P(Bf16Gemm, the_bits_do_not_depend_on_the_number_of_threads) {
  for (const bool a_transposed : {false, true}) {
    const Sizes s{150, 70, 400};
    Product product(s, a_transposed, !a_transposed, false);
    Gemm gemm(GemmEngine::tiles, unit());
    const auto run = [&] {
      Matrix c(s.m, s.n), sums(1, s.m);
      product.store(c);
      product.args.a_sums = a_transposed ? sums.tensor().f32() : nullptr;
      gemm(product.args);
      return std::tuple(c, sums);
    };
    expect_same_bits_on_threads({2, 5}, run);
  }
}

TEST_P(Bf16Gemm, sums_of_a_transposed_operand_come_along) {
  for (const CacheSizes& caches : kCaches) {
    Gemm gemm(GemmEngine::tiles, unit(), caches);
    for (const Sizes& s : {Sizes{1, 1, 1}, Sizes{17, 5, 300}, Sizes{70, 350, 130}}) {
      expect_sums_come_along<Product>(gemm, s);
    }
  }
}

TEST_P(Bf16Gemm, the_epilogue_sees_each_finished_element_once_and_may_change_it) {
  for (const CacheSizes& caches : kCaches) {
    Gemm gemm(GemmEngine::tiles, unit(), caches);
    for (const Sizes& s : {Sizes{1, 2, 1}, Sizes{40, 90, 30}, Sizes{40, 700, 70}, Sizes{80, 66, 230}}) {
      for (const bool b_transposed : {false, true}) {
        for (const bool halves : {false, true}) {
          for (const bool stored : {false, true}) {
            if (halves && !stored) continue;
            const Threads fixed(3);
            Product product(s, false, b_transposed);
            Bf16Matrix c(s.m, s.n, 3);
            if (stored) product.store(c);
            product.args.halves = halves;
            const Recorder recorder(s.m, s.n, 1.0F);
            gemm(product.args, &recorder);
            expect_exact(recorder.seen, Doubles(s.m * s.n, 1.0), 0.0, "times seen");
            expect_exact(recorder.values, product.expected, 0.0, "values seen");
            if (stored) expect_exact(c, product.expected, 1.0, "values stored");
          }
        }
      }
    }
  }
}

TEST_P(Bf16Gemm, a_product_over_no_depth_is_zero) {
  Gemm gemm(GemmEngine::tiles, unit());
  Bf16Matrix operand(40, 40);
  Matrix c = Matrix::filled(33, 7, 2.0F);
  Bf16GemmArgs args;
  args.m = 33;
  args.n = 7;
  args.a = args.b = operand.tensor().bf16();
  args.lda = args.ldb = 40;
  args.c = c.tensor().f32();
  args.ldc = 7;
  args.accumulate = true;
  gemm(args);
  EXPECT_TRUE(c.same_bits(Matrix::filled(33, 7, 2.0F)));
  args.accumulate = false;
  gemm(args);
  EXPECT_TRUE(c.same_bits(Matrix(33, 7)));

  Matrix sums = Matrix::filled(1, 33, 2.0F);
  args.a_transposed = true;
  args.a_sums = sums.tensor().f32();
  gemm(args);
  EXPECT_TRUE(sums.same_bits(Matrix(1, 33)));
}

TEST_P(Bf16Gemm, nan_and_infinity_stay_in_their_row) {
  const Sizes s{40, 50, 70};
  Product product(s, false, true, false);
  product.a.at(6, 3) = to_bf16(std::numeric_limits<float>::quiet_NaN());
  product.a.at(34, 69) = to_bf16(std::numeric_limits<float>::infinity());
  Bf16Matrix c(s.m, s.n);
  product.store(c);
  Gemm gemm(GemmEngine::tiles, unit());
  gemm(product.args);
  for (std::int64_t r = 0; r < s.m; ++r) {
    for (std::int64_t col = 0; col < s.n; ++col) {
      ASSERT_EQ(std::isnan(std::as_const(c).at(r, col)), r == 6) << r << ", " << col;
      ASSERT_EQ(std::isinf(std::as_const(c).at(r, col)), r == 34) << r << ", " << col;
    }
  }
}

TEST_P(Bf16Gemm, a_result_has_one_type_and_a_transposed_operand_needs_one) {
  Gemm gemm(GemmEngine::tiles, unit());
  Product product({4, 4, 4}, true, false);
  EXPECT_THROW(gemm(product.args), std::logic_error);
  Matrix c(4, 4);
  Bf16Matrix rounded(4, 4);
  product.store(c);
  product.args.c_bf16 = rounded.tensor().bf16();
  EXPECT_THROW(gemm(product.args), std::logic_error);
}

TEST_P(Bf16Gemm, small_products_on_one_thread_are_exact) {
  for (const Sizes& s : {Sizes{1, 1, 1}, Sizes{64, 64, 64}, Sizes{33, 70, 45}, Sizes{20, 32, 100}}) {
    for (const bool b_transposed : {false, true}) {
      Product product(s, false, b_transposed);
      const auto bytes = [](std::int64_t count) {
        return std::vector<float>(static_cast<std::size_t>(count / 4 + 16));
      };
      const auto aligned = [](std::vector<float>& memory) {
        return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
      };
      std::vector<float> packed = bytes(packed_panels_bytes(unit(), s.n, s.k));
      std::vector<float> scratch = bytes(block_scratch_bytes(unit(), s.k));
      pack_panels(unit(), product.args.b, product.args.ldb, b_transposed, s.n, s.k, aligned(packed));
      for (const bool accumulate : {false, true}) {
        Matrix c = Matrix::filled(s.m, s.n, 5.0F, 3);
        const cpu::UnitScope scope(unit());
        multiply_block(unit(), s.m, s.n, s.k, product.args.a, product.args.lda, aligned(packed), c.tensor().f32(),
                       c.tensor().stride, accumulate, aligned(scratch));
        expect_exact(c, product.expected, accumulate ? 5.0 : 0.0, "small product");
      }
    }
  }
}

TEST_P(Bf16Gemm, block_sizes_cover_the_depth_and_fit_the_cache) {
  for (const CacheSizes& caches : {CacheSizes{1 << 20}, CacheSizes{2 << 20}}) {
    for (const std::int64_t depth : {0, 1, 32, 33, 256, 384, 768, 1000, 3072, 4096, 50304}) {
      const cpu::BlockSizes sizes = choose_block_sizes(depth, unit(), caches);
      EXPECT_GE(sizes.rounds * sizes.steps * cpu::kBlock, depth);
      EXPECT_LT((sizes.rounds - 1) * sizes.steps * cpu::kBlock, std::max<std::int64_t>(depth, 1));
      const std::int64_t panel = sizes.steps * cpu::kBlock * cpu::kBlock * unit().packed_bytes();
      EXPECT_LE(8 * panel + 2 * sizes.strip * panel, caches.second_level) << depth;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Units, Bf16Gemm, kAllUnits, name_of_unit);

}  // namespace
}  // namespace polaron::test

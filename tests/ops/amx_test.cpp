// Tiles: packing after its definition, the emulation's own rules, and the real unit against the emulated one, to the
// bit.
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu/amx_tiles.h"
#include "ops/bf16_matrix.h"
#include "ops/gemm_units.h"

namespace polaron::test {
namespace {

using cpu::BlockSource;
using cpu::kBlock;
using cpu::kTileElements;

constexpr std::int64_t kStepElements = 2 * kTileElements;

struct alignas(64) Packed {
  bf16 at[4 * kStepElements] = {};
};

// Every element distinct and never zero.
Bf16Matrix numbered(std::int64_t rows, std::int64_t cols, std::int64_t padding) {
  Bf16Matrix matrix(rows, cols, padding);
  for (std::int64_t i = 0; i < rows * cols; ++i)
    matrix.at(i / cols, i % cols) = bf16{static_cast<std::uint16_t>(i + 1)};
  return matrix;
}

TEST(AmxPacking, puts_rows_of_a_and_pairs_of_rows_of_b_into_tiles_with_zeros_around) {
  for (const std::int64_t count : {1, 15, 16, 17, 32}) {
    for (const std::int64_t depth : {1, 2, 31, 32, 33, 96}) {
      for (const bool along : {true, false}) {
        Bf16Matrix matrix = along ? numbered(count, depth, 3) : numbered(depth, count, 5);
        const BlockSource block{matrix.tensor().bf16(), matrix.tensor().stride, count, depth, along};
        Packed a, b;
        for (bf16& element : a.at) element.bits = 0xffff;
        b = a;
        pack_a_tiles(block, a.at);
        pack_b_tiles(block, b.at);
        for (std::int64_t p = 0; p < block.steps() * kBlock; ++p) {
          for (std::int64_t i = 0; i < kBlock; ++i) {
            const bool inside = i < count && p < depth;
            const int expected = !inside ? 0 : along ? matrix.at(i, p).bits : matrix.at(p, i).bits;
            const std::int64_t tile = p / kBlock * kStepElements + i / 16 * kTileElements, q = p % kBlock;
            ASSERT_EQ(a.at[tile + i % 16 * 32 + q].bits, expected) << i << ", " << p << " of A " << count;
            ASSERT_EQ(b.at[tile + q / 2 * 32 + i % 16 * 2 + q % 2].bits, expected)
                << i << ", " << p << " of B " << count;
          }
        }
        for (std::int64_t i = block.steps() * kStepElements; i < 4 * kStepElements; ++i)
          ASSERT_EQ(a.at[i].bits, 0xffff);
      }
    }
  }
}

TEST(AmxEmulation, refuses_what_the_processor_would) {
  EXPECT_THROW(EmulatedTiles::zero<0>(), std::logic_error) << "not configured";
  EXPECT_THROW(EmulatedTiles::release(), std::logic_error);
  cpu::TileConfig config = cpu::kFullTiles;
  config.rows[3] = 17;
  EXPECT_THROW(EmulatedTiles::configure(config), std::logic_error);
  config = cpu::kFullTiles;
  config.row_bytes[0] = 68;
  EXPECT_THROW(EmulatedTiles::configure(config), std::logic_error);
  config = cpu::kFullTiles;
  config.palette = 0;
  EXPECT_THROW(EmulatedTiles::configure(config), std::logic_error);
  config = cpu::kFullTiles;
  config.rows[4] = 8;  // A's rows are not C's then
  EmulatedTiles::configure(config);
  EXPECT_THROW((EmulatedTiles::dot_bf16<0, 4, 6>()), std::logic_error);
  EXPECT_THROW((EmulatedTiles::dot_bf16<0, 0, 6>()), std::logic_error);
  EXPECT_THROW(EmulatedTiles::configure(config), std::logic_error) << "twice";
  EmulatedTiles::release();
  EXPECT_THROW(EmulatedTiles::zero<0>(), std::logic_error) << "released";
}

TEST(AmxEmulation, units_configure_and_release_on_the_thread_that_uses_them) {
  {
    const cpu::UnitScope scope(emulated_unit());
    EXPECT_TRUE(EmulatedTiles::configured());
  }
  EXPECT_FALSE(EmulatedTiles::configured());
}

// Products on one block, C included.
std::vector<float> multiply(const cpu::BlockUnit& unit, const Packed& a, const Packed& b, std::vector<float> c,
                            std::int64_t ldc, std::int64_t steps, bool accumulate, bool backwards = false) {
  const cpu::UnitScope scope(unit);
  unit.multiply(steps, {a.at, 0}, b.at, c.data(), ldc, accumulate, backwards);
  return c;
}

TEST(AmxEmulation, counts_denormal_numbers_as_zero) {
  const float denormal = std::numeric_limits<float>::denorm_min() * 65536.0F, least = std::numeric_limits<float>::min();
  Packed a, b;
  a.at[0] = to_bf16(denormal);
  b.at[0] = to_bf16(1.0F);
  const std::vector<float> sums =
      multiply(emulated_unit(), a, b, std::vector<float>(kBlock * kBlock, denormal), kBlock, 1, true);
  for (const float sum : sums) EXPECT_EQ(sum, 0.0F);
  a.at[0] = to_bf16(least);
  EXPECT_EQ(multiply(emulated_unit(), a, b, std::vector<float>(kBlock * kBlock), kBlock, 1, false)[0], least);
}

class AmxBlocks : public OnUnits {};

// ldc wider than the block; every element of C and nothing else is written.
TEST_P(AmxBlocks, multiply_whole_blocks_of_a_wider_matrix) {
  const std::int64_t depth = 96, ldc = kBlock + 5;
  Bf16Matrix a = Bf16Matrix::random(kBlock, depth, 31), b = Bf16Matrix::random(depth, kBlock, 32);
  alignas(64) float left_floats[4 * kStepElements], right_floats[4 * kStepElements];  // room for either element
  unit().pack_a({a.tensor().bf16(), depth, kBlock, depth, true}, left_floats);
  unit().pack_b({b.tensor().bf16(), kBlock, kBlock, depth, false}, right_floats);
  for (const bool accumulate : {false, true}) {
    std::vector<float> c(kBlock * ldc, 3.0F);
    const cpu::UnitScope scope(unit());
    unit().multiply(3, {left_floats, 0}, right_floats, c.data(), ldc, accumulate, !accumulate);
    for (std::int64_t i = 0; i < kBlock; ++i) {
      for (std::int64_t j = 0; j < ldc; ++j) {
        double expected = accumulate || j >= kBlock ? 3.0 : 0.0;
        for (std::int64_t p = 0; j < kBlock && p < depth; ++p)
          expected += std::as_const(a).at(i, p) * std::as_const(b).at(p, j);
        ASSERT_NEAR(static_cast<double>(c[i * ldc + j]), expected, 2e-5) << i << ", " << j;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Units, AmxBlocks, kAllUnits, name_of_unit);

TEST(Amx, gives_the_bits_of_the_emulation) {
  const cpu::BlockUnit* const amx = cpu::amx_unit();
  if (amx == nullptr) GTEST_SKIP() << "no AMX here: " << cpu::amx_bf16().reason;
  Bf16Matrix a = Bf16Matrix::random(kBlock, 96, 33), b = Bf16Matrix::random(96, kBlock, 34);
  a.at(3, 5).bits = 1;  // denormal
  a.at(9, 7) = to_bf16(1e38F);
  b.at(7, 4) = to_bf16(1e38F);
  Packed left, right;
  cpu::pack_a_tiles({a.tensor().bf16(), 96, kBlock, 96, true}, left.at);
  cpu::pack_b_tiles({b.tensor().bf16(), kBlock, kBlock, 96, false}, right.at);
  const std::vector<float> start = random_floats(kBlock * kBlock, 35);
  for (const bool accumulate : {false, true}) {
    const std::vector<float> expected = multiply(emulated_unit(), left, right, start, kBlock, 3, accumulate);
    const std::vector<float> actual = multiply(*amx, left, right, start, kBlock, 3, accumulate);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(actual[i]), std::bit_cast<std::uint32_t>(expected[i])) << i;
    }
  }
}

}  // namespace
}  // namespace polaron::test

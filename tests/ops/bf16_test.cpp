// Rounding to bf16 by vectors, and the working copies that updates keep. backend/bf16.h itself: tests/backend.
#include "backend/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/families.h"
#include "cpu/simd.h"
#include "ops/reference.h"

namespace polaron::test {
namespace {

// Every upper half of a float with lower halves on, around and far from the tie: all kinds of number and NaN.
std::vector<float> every_kind_of_float() {
  std::vector<float> values;
  for (std::uint32_t upper = 0; upper < 1U << 16U; ++upper) {
    for (const std::uint32_t lower : {0x0000U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      values.push_back(std::bit_cast<float>(upper << 16U | lower));
    }
  }
  return values;
}

TEST(Round, every_element_becomes_its_nearest_bf16) {
  const std::vector<float> from = every_kind_of_float();
  const auto n = static_cast<std::int64_t>(from.size());
  for (const int threads : {1, 3}) {
    const Threads scope(threads);
    Matrix to(1, n, 0, DType::bf16);
    HostStream stream;
    cpu::make_elementwise_ops()->round(stream, from.data(), to.tensor().bf16(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(to.tensor().bf16()[i].bits, to_bf16(from[i]).bits) << std::hex << std::bit_cast<std::uint32_t>(from[i]);
    }
  }
}

TEST(Round, no_more_than_the_elements_asked_for_are_written) {
  const std::vector<float> from = random_floats(40000, 1);
  HostStream stream;
  for (const std::int64_t n : {0, 1, 7, 31, 33, 16384, 16385, 40000}) {
    Matrix to(1, n, 0, DType::bf16);  // guards what lies behind it
    cpu::make_elementwise_ops()->round(stream, from.data(), to.tensor().bf16(), n);
    for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(static_cast<float>(to.at(0, i)), to_float(to_bf16(from[i]))) << i;
  }
}

TEST(Vectors, load_and_store_bf16_as_the_scalars_do) {
  std::vector<float> from = every_kind_of_float();
  from.resize(from.size() / cpu::kLanes * cpu::kLanes);
  bf16 half[cpu::kLanes];
  for (std::size_t first = 0; first < from.size(); first += cpu::kLanes) {
    cpu::store_vec(half, cpu::load_vec(from.data() + first));
    const cpu::Vec back = cpu::load_vec(half);
    for (int lane = 0; lane < cpu::kLanes; ++lane) {
      const bf16 expected = to_bf16(from[first + static_cast<std::size_t>(lane)]);
      ASSERT_EQ(half[lane].bits, expected.bits) << first + static_cast<std::size_t>(lane);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(static_cast<float>(back[lane])),
                std::bit_cast<std::uint32_t>(to_float(expected)));
    }
  }
}

}  // namespace
}  // namespace polaron::test

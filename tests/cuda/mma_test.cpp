// The wrappers of cuda/mma.h by themselves, under emulation; the kernels that use them are tested on the device too.
#include "cuda/mma.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "backend/bf16.h"
#include "emulation/emulation.h"
#include "ops/reference.h"

namespace polaron::cuda {
namespace {

using emulation::Options;
using emulation::Order;
using emulation::WithOptions;

constexpr Order kOrders[] = {Order::forward, Order::reverse, Order::random};

struct Tiles {
  bf16 a[16 * 16], b[16 * 16];
};

// c [16, 16] = a b with b [16, 16] given by rows, or by columns where not transposed_b.
template <bool transposed_b>
__global__ void multiply_tiles(const bf16* a, const bf16* b, float* c) {
  Tiles& tiles = static_shared<Tiles>();
  const auto lane = static_cast<int>(threadIdx.x);
  copy_async<16>(tiles.a + 8 * lane, a + 8 * lane, true);
  copy_async<16>(tiles.b + 8 * lane, b + 8 * lane, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  std::uint32_t a_parts[4], b_parts[4];
  ldmatrix_x4(a_parts, tiles.a + lane % 16 * 16 + lane / 16 * 8);
  if constexpr (transposed_b) {
    ldmatrix_x4_trans(b_parts, tiles.b + lane % 16 * 16 + lane / 16 * 8);
  } else {
    ldmatrix_x4(b_parts, tiles.b + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
  }
  for (int half = 0; half < 2; ++half) {
    float sums[4] = {};
    mma(sums, a_parts, b_parts[2 * half], b_parts[2 * half + 1]);
    for (int i = 0; i < 4; ++i) {
      c[(lane / 4 + i / 2 * 8) * 16 + 8 * half + 2 * (lane % 4) + i % 2] = sums[i];
    }
  }
}

template <bool transposed_b>
void expect_product(Order order) {
  const WithOptions with({.order = order});
  const std::vector<float> values = test::random_floats(512, 1);
  std::vector<bf16> a(256), b(256);
  for (int i = 0; i < 256; ++i) a[i] = to_bf16(values[i]), b[i] = to_bf16(values[256 + i]);
  std::vector<float> c(256, NAN);
  launch<multiply_tiles<transposed_b>>({dim3(1), dim3(32)}, a.data(), b.data(), c.data());
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 16; ++col) {
      double expected = 0.0;
      for (int k = 0; k < 16; ++k) {
        expected += static_cast<double>(to_float(a[row * 16 + k])) *
                    static_cast<double>(to_float(transposed_b ? b[k * 16 + col] : b[col * 16 + k]));
      }
      EXPECT_NEAR(static_cast<double>(c[row * 16 + col]), expected, 1e-5) << row << ", " << col;
    }
  }
}

TEST(Mma, fragments_loaded_by_ldmatrix_make_the_product) {
  for (const Order order : kOrders) {
    expect_product<false>(order);
    expect_product<true>(order);
  }
}

// 16 x 8 numbers, distinct in every place, so that a permutation of any kind shows.
__global__ void one_ldmatrix(const std::uint16_t* in, std::uint32_t* out, bool transposed) {
  auto* const rows = dynamic_shared<std::uint16_t>();
  const unsigned lane = threadIdx.x;
  copy_async<16>(rows + 8 * lane, in + 8 * lane, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  std::uint32_t parts[4];
  if (transposed) {
    ldmatrix_x4_trans(parts, rows + 8 * lane);
  } else {
    ldmatrix_x4(parts, rows + 8 * lane);
  }
  for (int m = 0; m < 4; ++m) out[lane * 4 + m] = parts[m];
}

TEST(Mma, ldmatrix_hands_each_lane_the_elements_that_ptx_names) {
  std::vector<std::uint16_t> in(256);
  for (int i = 0; i < 256; ++i) in[i] = static_cast<std::uint16_t>(i);
  for (const bool transposed : {false, true}) {
    std::vector<std::uint32_t> out(128);
    launch<one_ldmatrix>({dim3(1), dim3(32), nullptr, 512}, in.data(), out.data(), transposed);
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        const int row = lane / 4, pair = 2 * (lane % 4);
        const int first = 64 * m + (transposed ? pair * 8 + row : row * 8 + pair);
        const int second = first + (transposed ? 8 : 1);
        EXPECT_EQ(out[lane * 4 + m], static_cast<std::uint32_t>(first | second << 16)) << lane << ", " << m;
      }
    }
  }
}

// out: what is in shared memory before a group is waited for, after waiting for all but the last one, and at the end.
__global__ void copy_in_groups(const float* in, float* out) {
  auto* const to = dynamic_shared<float>();
  copy_async<4>(to, in, true);
  copy_async_commit();
  copy_async<16>(to + 4, in + 4, true);
  copy_async<4>(to + 1, in + 1, false);
  copy_async_commit();
  out[0] = to[0];
  copy_async_wait<1>();
  out[1] = to[0], out[2] = to[1], out[3] = to[4];
  copy_async_wait<0>();
  out[4] = to[0], out[5] = to[1], out[6] = to[7];
}

TEST(Mma, copies_arrive_when_they_are_waited_for_and_not_before) {
  alignas(16) const float in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float out[7] = {};
  const float* const from = in;
  float* const to = out;
  launch<copy_in_groups>({dim3(1), dim3(1), nullptr, 32}, from, to);
  EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[2]) && std::isnan(out[3]));
  EXPECT_EQ(out[1], 1.0F);
  EXPECT_EQ(out[4], 1.0F);
  EXPECT_EQ(out[5], 0.0F);
  EXPECT_EQ(out[6], 8.0F);
}

__global__ void misuse_matrices(const float* in, int kind) {
  auto* const shared = dynamic_shared<std::uint16_t>();
  float sums[4] = {};
  const std::uint32_t a[4] = {};
  std::uint32_t parts[4];
  if (kind == 0 && threadIdx.x != 3) mma(sums, a, 0, 0);
  if (kind == 1) ldmatrix_x4(parts, shared + 1);
  if (kind == 2) copy_async<16>(shared, in + 1, true);
}

TEST(Mma, misuse_is_reported) {
  const auto fault = [](int kind) -> std::string {
    alignas(16) const float in[8] = {};
    const float* const from = in;
    try {
      launch<misuse_matrices>({dim3(1), dim3(32), nullptr, 64}, from, kind);
    } catch (const emulation::Fault& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(fault(0).find("thread (3, 0, 0) has returned"), std::string::npos) << fault(0);
  EXPECT_NE(fault(0).find("a matrix operation"), std::string::npos);
  EXPECT_NE(fault(1).find("not a multiple"), std::string::npos) << fault(1);
  EXPECT_NE(fault(2).find("not a multiple"), std::string::npos) << fault(2);
}

}  // namespace
}  // namespace polaron::cuda

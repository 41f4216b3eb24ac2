// What a warp's matrix operations do with the parts that its lanes hold: PTX ISA, "mma.m16n8k16" and "ldmatrix".
// Compiled without sanitizers, like all of the emulation: it reads and writes variables of other fibers, which is no
// race, for they wait.
#include <bit>

#include "emulation/device_code.h"

namespace polaron::cuda::emulation {
namespace {

using Row = float __attribute__((vector_size(32)));  // of c and b

float low(std::uint32_t pair) { return std::bit_cast<float>(pair << 16U); }
float high(std::uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000U); }

template <bool transposed>
void ldmatrix(void* const (&lanes)[32]) {
  const auto element = [&](int matrix, int row, int col) -> std::uint32_t {
    return static_cast<const LdmatrixLane*>(lanes[8 * matrix + row])->row.elements[col];
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int m = 0; m < 4; ++m) {
      const std::uint32_t first = transposed ? element(m, pair, group) : element(m, group, pair);
      const std::uint32_t second = transposed ? element(m, pair + 1, group) : element(m, group, pair + 1);
      static_cast<LdmatrixLane*>(lanes[lane])->to[m] = first | second << 16U;
    }
  }
}

}  // namespace

void mma_m16n8k16(void* const (&lanes)[32]) {
  float a[16][16];
  Row b[16], c[16];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& part = *static_cast<const MmaLane*>(lanes[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, col = pair + i / 2 * 8;
      a[row][col] = low(part.a[i]);
      a[row][col + 1] = high(part.a[i]);
      c[group + i / 2 * 8][pair + i % 2] = part.c[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[pair + 8 * i][group] = low(part.b[i]);
      b[pair + 8 * i + 1][group] = high(part.b[i]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) c[row] += a[row][k] * b[k];
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      static_cast<MmaLane*>(lanes[lane])->c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
    }
  }
}

void ldmatrix_x4(void* const (&lanes)[32]) { ldmatrix<false>(lanes); }
void ldmatrix_x4_trans(void* const (&lanes)[32]) { ldmatrix<true>(lanes); }

}  // namespace polaron::cuda::emulation

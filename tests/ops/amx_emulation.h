// Tile registers made of plain memory, after the operation sections of Intel's manual (LDTILECFG, TILELOADD,
// TILESTORED, TILEZERO, TDPBF16PS), for amx_tiles.h. Breaking a rule on which the processor would fault, or give
// something else than meant, throws std::logic_error.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "backend/bf16.h"
#include "cpu/amx_tiles.h"

namespace polaron::test {

class EmulatedTiles {
 public:
  static void configure(const cpu::TileConfig& config) {
    State& s = state();
    require(config.palette == 1 && config.start_row == 0, "palette 1 from row 0 is all there is");
    for (const std::uint8_t byte : config.reserved) require(byte == 0, "reserved bytes of a configuration are 0");
    for (int t = 0; t < 16; ++t) {
      require(config.row_bytes[t] <= 64 && config.rows[t] <= 16, "a tile is 16 rows of 64 bytes at most");
      require((config.row_bytes[t] == 0) == (config.rows[t] == 0), "rows and bytes are both 0 or neither");
      require(t < 8 || config.rows[t] == 0, "there are eight tiles");
    }
    require(!s.configured, "already configured on this thread");
    s = State{};
    s.config = config;
    s.configured = true;
  }
  static void release() {
    require(state().configured, "released without a configuration");
    state().configured = false;
  }
  static bool configured() { return state().configured; }

  template <int T>
  static void zero() {
    tile<T>() = Tile{};
  }
  template <int T>
  static void load(const void* from, std::int64_t stride) {
    Tile& to = tile<T>();
    to = Tile{};
    for (int r = 0; r < rows(T); ++r) {
      std::memcpy(to.data() + r * 64, static_cast<const char*>(from) + r * stride, bytes(T));
    }
  }
  template <int T>
  static void store(void* to, std::int64_t stride) {
    const Tile& from = tile<T>();
    for (int r = 0; r < rows(T); ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, from.data() + r * 64, bytes(T));
    }
  }

  // Even and odd elements are summed apart, from zero, and their sum is added to C; denormal numbers count as zero on
  // the way in and out.
  template <int C, int A, int B>
  static void dot_bf16() {
    Tile &c = tile<C>(), &a = tile<A>(), &b = tile<B>();
    require(C != A && C != B && A != B, "the three tiles are different ones");
    require(bytes(C) % 4 == 0 && bytes(A) % 4 == 0 && bytes(B) % 4 == 0, "rows are whole pairs");
    require(rows(C) == rows(A) && bytes(C) == bytes(B) && bytes(A) / 4 == rows(B), "shapes of a product fit");
    float left[16 * 32], right[16 * 32];
    for (int i = 0; i < 16 * 32; ++i) {
      left[i] = flush(to_float(get<bf16>(a, i / 32, i % 32)));
      right[i] = flush(to_float(get<bf16>(b, i / 32, i % 32)));
    }
    for (int m = 0; m < rows(C); ++m) {
      float sums[32] = {};  // of even elements of A and B, and of odd ones, in turn
      for (int k = 0; k < rows(B); ++k) {
        for (int n = 0; n < bytes(C) / 2; ++n)
          sums[n] = add_product(sums[n], left[m * 32 + 2 * k + n % 2], right[k * 32 + n]);
      }
      for (int n = 0; n < bytes(C) / 4; ++n) {
        const float sum = flush(flush(get<float>(c, m, n)) + flush(sums[2 * n] + sums[2 * n + 1]));
        std::memcpy(c.data() + m * 64 + n * 4, &sum, sizeof sum);
      }
    }
  }

 private:
  using Tile = std::array<unsigned char, 16 * 64>;
  struct State {
    bool configured = false;
    cpu::TileConfig config;
    std::array<Tile, 8> tiles = {};
  };
  static State& state() {
    thread_local State state;
    return state;
  }
  static void require(bool holds, const char* rule) {
    if (!holds) throw std::logic_error(rule);
  }
  template <int T>
  static Tile& tile() {
    static_assert(T >= 0 && T < 8);
    require(state().configured, "tiles are configured before they are used");
    require(rows(T) > 0, "a tile without rows is not used");
    return state().tiles[T];
  }
  static int rows(int t) { return state().config.rows[t]; }
  static int bytes(int t) { return state().config.row_bytes[t]; }

  template <class T>
  static T get(const Tile& tile, int row, int element) {
    T value;
    std::memcpy(&value, tile.data() + row * 64 + element * static_cast<int>(sizeof(T)), sizeof value);
    return value;
  }
  static float flush(float x) { return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0F, x) : x; }
  // A fused multiply-add. Products of bf16 are exact in fp32 unless they are denormal.
  static float add_product(float sum, float a, float b) {
    const float product = a * b;
    if (std::abs(product) < std::numeric_limits<float>::min() && a != 0.0F && b != 0.0F)
      return flush(std::fma(a, b, sum));
    return flush(sum + product);
  }
};

}  // namespace polaron::test

// A keyed random permutation of 0 .. n-1 that is computed, not stored: any element in O(1), so that the order of an
// epoch needs no memory and a position in it is one integer.
#pragma once

#include <bit>
#include <cstdint>
#include <stdexcept>

namespace polaron {

// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014): a bijection
// of 64-bit words in which every input bit reaches every output bit.
constexpr std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A key that depends on every argument and on their order.
template <typename... Words>
constexpr std::uint64_t mix_key(std::uint64_t first, Words... rest) {
  std::uint64_t key = mix64(first + 0x9e3779b97f4a7c15ULL);
  ((key = mix64(key + 0x9e3779b97f4a7c15ULL + mix64(static_cast<std::uint64_t>(rest)))), ...);
  return key;
}

// A balanced Feistel network over the smallest even number of bits that holds n; values that fall outside 0 .. n-1 are
// put through it again until they fall inside (cycle walking; Black and Rogaway: "Ciphers with Arbitrary Finite
// Domains", 2002), which keeps it a bijection of 0 .. n-1. Not cryptographic.
class Permutation {
 public:
  // n >= 1; every key is another permutation. Throws std::logic_error for n < 1.
  Permutation(std::int64_t n, std::uint64_t key) : n_(static_cast<std::uint64_t>(n)) {
    if (n < 1) throw std::logic_error("a permutation needs at least one element");
    const int bits = static_cast<int>(std::bit_width(n_ - 1));
    // Halves of one or two bits have too few round functions to look random, hence the lower bound.
    half_bits_ = bits < 2 * min_half_bits ? min_half_bits : (bits + 1) / 2;
    for (int round = 0; round < rounds; ++round) round_keys_[round] = mix_key(key, round);
  }

  // The image of 0 <= index < n. Throws std::logic_error for any other index.
  std::int64_t operator()(std::int64_t index) const {
    auto value = static_cast<std::uint64_t>(index);
    if (value >= n_) throw std::logic_error("index outside the permutation");
    do value = encrypt(value);
    while (value >= n_);
    return static_cast<std::int64_t>(value);
  }

  std::int64_t size() const { return static_cast<std::int64_t>(n_); }

 private:
  static constexpr int rounds = 8;
  static constexpr int min_half_bits = 4;

  std::uint64_t encrypt(std::uint64_t value) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (const std::uint64_t round_key : round_keys_) {
      const std::uint64_t next = left ^ (mix64(right ^ round_key) & mask);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  std::uint64_t n_;
  int half_bits_;
  std::uint64_t round_keys_[rounds];
};

}  // namespace polaron

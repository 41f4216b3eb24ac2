// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// The same key and counter give the same integers on every device and process, so a random sketch need never be sent.
// Everything here is integer arithmetic up to one exact conversion; `POLARON_HD` lets CUDA code include it.
#pragma once

#include <array>
#include <cstdint>

#include "backend/host_device.h"

namespace polaron {

// What a stream of numbers is for; part of every key, so that two uses never share numbers.
enum class RandomPurpose : std::uint32_t { initial_weights = 1, sketch = 2, data_order = 3, sampling = 4, test = 5 };

// The key (64 bits) and the upper half of the counter; the lower half counts elements.
struct PhiloxKey {
  std::uint64_t seed = 0;
  std::uint32_t purpose = 0;
  std::uint32_t tensor = 0;
  std::uint64_t step = 0;
};

POLARON_HD constexpr PhiloxKey make_key(std::uint64_t seed, RandomPurpose purpose, std::uint64_t step,
                                        std::uint32_t tensor) {
  return {seed, static_cast<std::uint32_t>(purpose), tensor, step};
}

struct Philox4 {
  std::uint32_t word[4];
};

// 128 random bits: block number `index` of the stream that `key` names.
POLARON_HD constexpr Philox4 philox(const PhiloxKey& key, std::uint64_t index) {
  // Purpose, tensor and step are folded into key and counter; step is limited to 32 bits there, index to 64.
  std::uint32_t k0 = static_cast<std::uint32_t>(key.seed) ^ (key.purpose * 0x9E3779B9U);
  std::uint32_t k1 = static_cast<std::uint32_t>(key.seed >> 32U);
  std::uint32_t c0 = static_cast<std::uint32_t>(index);
  std::uint32_t c1 =
      static_cast<std::uint32_t>(index >> 32U) ^ static_cast<std::uint32_t>(key.step >> 32U) * 0x85EBCA6BU;
  std::uint32_t c2 = key.tensor;
  std::uint32_t c3 = static_cast<std::uint32_t>(key.step);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53U) * c0;
    const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57U) * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32U) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32U) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

// Approximately standard normal: the centred sum of the eight 16-bit halves of one block (Irwin-Hall, n = 8: the
// kurtosis is 2.85 instead of 3), divided by its standard deviation. The sum is an integer below 2^19, so it is exact
// everywhere and only the one multiplication rounds. Meant for sketches, where any sub-Gaussian entries do; initial
// weights use normal().
POLARON_HD constexpr float sketch_gaussian(const PhiloxKey& key, std::uint64_t index) {
  const Philox4 block = philox(key, index);
  std::int32_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<std::int32_t>(block.word[i] & 0xFFFFU) + static_cast<std::int32_t>(block.word[i] >> 16U);
  }
  const std::int32_t twice_centred = 2 * sum - 8 * 65535;
  // standard deviation of twice the sum: 2 * sqrt(8 * (65536^2 - 1) / 12)
  return static_cast<float>(twice_centred) * 9.344062e-06F;
}

// Bijection of [0, n): position -> element, the same for every caller with the same key. A Feistel network over the
// next even power of two, walked until it falls below n (at most four steps on average). Element `position` of a random
// permutation can so be had without the others, by any thread.
POLARON_HD constexpr std::uint32_t keyed_permutation(const PhiloxKey& key, std::uint32_t n, std::uint32_t position) {
  std::uint32_t half_bits = 1;
  while ((std::uint64_t{1} << (2 * half_bits)) < n) ++half_bits;
  const std::uint32_t mask = (std::uint32_t{1} << half_bits) - 1;
  std::uint32_t value = position;
  do {
    std::uint32_t left = value >> half_bits;
    std::uint32_t right = value & mask;
    for (std::uint32_t round = 0; round < 6; ++round) {
      const Philox4 mixed = philox(key, (std::uint64_t{1} << 63U) | (std::uint64_t{round} << 32U) | right);
      const std::uint32_t next = left ^ (mixed.word[0] & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits) | right;
  } while (value >= n);
  return value;
}

}  // namespace polaron

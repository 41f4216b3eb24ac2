#include "backend/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

namespace polaron {
namespace {

std::vector<std::uint32_t> words(const Philox4& block) { return {block.word, block.word + 4}; }

// The published known-answer vectors of Philox4x32-10 (Random123, kat_vectors): counter words c0..c3 are the index's
// low and high half, the tensor and the step; purpose 0 leaves the key as it is.
TEST(Philox, agrees_with_the_published_vectors) {
  const PhiloxKey zero{};
  EXPECT_EQ(words(philox(zero, 0)), (std::vector<std::uint32_t>{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  const PhiloxKey ones{~0ULL, 0, 0xFFFFFFFF, 0xFFFFFFFF};
  EXPECT_EQ(words(philox(ones, ~0ULL)), (std::vector<std::uint32_t>{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}));
  const PhiloxKey pi{0x299F31D0A4093822, 0, 0x13198A2E, 0x03707344};
  EXPECT_EQ(words(philox(pi, 0x85A308D3243F6A88)),
            (std::vector<std::uint32_t>{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}));
}

TEST(Philox, every_part_of_the_key_and_the_index_changes_the_numbers) {
  const PhiloxKey key = make_key(7, RandomPurpose::sketch, 11, 13);
  std::set<std::vector<std::uint32_t>> seen{words(philox(key, 0)), words(philox(key, 1)),
                                            words(philox(key, 1ULL << 40U))};
  seen.insert(words(philox(make_key(8, RandomPurpose::sketch, 11, 13), 0)));
  seen.insert(words(philox(make_key(7 + (1ULL << 40U), RandomPurpose::sketch, 11, 13), 0)));
  seen.insert(words(philox(make_key(7, RandomPurpose::initial_weights, 11, 13), 0)));
  seen.insert(words(philox(make_key(7, RandomPurpose::sketch, 12, 13), 0)));
  seen.insert(words(philox(make_key(7, RandomPurpose::sketch, 11 + (1ULL << 40U), 13), 0)));
  seen.insert(words(philox(make_key(7, RandomPurpose::sketch, 11, 14), 0)));
  EXPECT_EQ(seen.size(), 9U);
}

// In constant expressions too: the first of the published vectors.
static_assert(philox(PhiloxKey{}, 0).word[0] == 0x6627E8D5);
static_assert(keyed_permutation(PhiloxKey{}, 1, 0) == 0);

TEST(SketchGaussian, has_the_moments_of_the_sum_of_eight_uniforms) {
  constexpr int kCount = 1 << 18;
  for (const std::uint64_t seed : {1ULL, 2ULL, 1234567890123ULL}) {
    const PhiloxKey key = make_key(seed, RandomPurpose::sketch, 5, 3);
    double first = 0, second = 0, third = 0, fourth = 0;
    for (int i = 0; i < kCount; ++i) {
      const double x = sketch_gaussian(key, i);
      first += x / kCount;
      second += x * x / kCount;
      third += x * x * x / kCount;
      fourth += x * x * x * x / kCount;
    }
    EXPECT_NEAR(first, 0.0, 0.01);  // five standard errors or so each
    EXPECT_NEAR(second, 1.0, 0.015);
    EXPECT_NEAR(third, 0.0, 0.03);
    EXPECT_NEAR(fourth / (second * second), 2.85, 0.05);
  }
}

TEST(SketchGaussian, neighbours_and_other_keys_are_uncorrelated) {
  constexpr int kCount = 1 << 16;
  const PhiloxKey key = make_key(1, RandomPurpose::sketch, 0, 0);
  const std::array<PhiloxKey, 3> others{make_key(2, RandomPurpose::sketch, 0, 0),
                                        make_key(1, RandomPurpose::sketch, 1, 0),
                                        make_key(1, RandomPurpose::sketch, 0, 1)};
  double lagged = 0;
  std::array<double, 3> crossed{};
  for (int i = 0; i < kCount; ++i) {
    const double x = sketch_gaussian(key, i);
    lagged += x * sketch_gaussian(key, i + 1) / kCount;
    for (std::size_t k = 0; k < others.size(); ++k) crossed[k] += x * sketch_gaussian(others[k], i) / kCount;
  }
  EXPECT_NEAR(lagged, 0.0, 0.02);  // five standard errors
  for (const double correlation : crossed) EXPECT_NEAR(correlation, 0.0, 0.02);
}

std::vector<std::uint32_t> permutation(const PhiloxKey& key, std::uint32_t n) {
  std::vector<std::uint32_t> values(n);
  for (std::uint32_t i = 0; i < n; ++i) values[i] = keyed_permutation(key, n, i);
  return values;
}

TEST(KeyedPermutation, is_a_bijection_for_every_size) {
  std::vector<std::uint32_t> sizes{511, 512, 513, 768, 1000, 1023, 1024, 1025, 4096, 4097, 5461, 50257};
  for (std::uint32_t n = 1; n <= 130; ++n) sizes.push_back(n);
  for (const std::uint32_t n : sizes) {
    for (const std::uint64_t seed : {0ULL, 99ULL}) {
      std::vector<std::uint32_t> values = permutation(make_key(seed, RandomPurpose::sketch, 3, n), n);
      std::sort(values.begin(), values.end());
      for (std::uint32_t i = 0; i < n; ++i) ASSERT_EQ(values[i], i) << "n = " << n << ", seed " << seed;
    }
  }
}

TEST(KeyedPermutation, differs_from_key_to_key) {
  std::set<std::vector<std::uint32_t>> seen;
  for (std::uint32_t step = 0; step < 20; ++step) {
    seen.insert(permutation(make_key(1, RandomPurpose::data_order, step, 0), 100));
    seen.insert(permutation(make_key(1, RandomPurpose::data_order, 0, step + 1), 100));
  }
  EXPECT_EQ(seen.size(), 40U);
}

TEST(KeyedPermutation, sends_every_position_everywhere_equally_often) {
  constexpr std::uint32_t kSize = 10, kKeys = 10000;
  for (const std::uint32_t position : {0U, 4U, 9U}) {
    std::array<int, kSize> counts{};
    for (std::uint32_t key = 0; key < kKeys; ++key) {
      ++counts[keyed_permutation(make_key(key, RandomPurpose::sketch, 0, 0), kSize, position)];
    }
    double chi_square = 0;
    for (const int count : counts) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
    EXPECT_LT(chi_square, 33.7) << "position " << position;  // exceeded once in 10,000 for nine degrees of freedom
  }
}

}  // namespace
}  // namespace polaron

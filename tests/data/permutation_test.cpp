#include "data/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace polaron {
namespace {

bool is_bijection(std::int64_t n, std::uint64_t key) {
  const Permutation permutation(n, key);
  std::vector<bool> seen(n, false);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t image = permutation(i);
    if (image < 0 || image >= n || seen[image]) return false;
    seen[image] = true;
  }
  return true;
}

// Pearson's statistic against equal expectations.
double chi_square(const std::vector<std::int64_t>& counts) {
  const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
  const double expected = total / static_cast<double>(counts.size());
  double sum = 0;
  for (const auto count : counts)
    sum += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected);
  return sum / expected;
}

TEST(Permutation, is_a_bijection_of_every_size_up_to_2000) {
  for (std::int64_t n = 1; n <= 2000; ++n) ASSERT_TRUE(is_bijection(n, 17 * n)) << n;
}

TEST(Permutation, is_a_bijection_of_large_sizes_around_powers_of_two) {
  for (const std::int64_t n : {65'535, 65'536, 65'537, 1'048'577, 3'000'001}) {
    EXPECT_TRUE(is_bijection(n, 5)) << n;
  }
}

TEST(Permutation, stays_within_sizes_that_no_table_could_hold) {
  const std::int64_t n = (std::int64_t{1} << 61) + 12345;
  const Permutation permutation(n, 3);
  for (const std::int64_t i : {std::int64_t{0}, std::int64_t{1}, n / 2, n - 1}) {
    EXPECT_GE(permutation(i), 0);
    EXPECT_LT(permutation(i), n);
  }
  EXPECT_NE(permutation(0), permutation(1));
}

TEST(Permutation, depends_on_the_key_and_on_nothing_else) {
  const Permutation a(1000, 1), again(1000, 1), b(1000, 2);
  int same = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    EXPECT_EQ(a(i), again(i));
    same += a(i) == b(i);
  }
  EXPECT_LT(same, 10);  // one match expected of two independent permutations
}

TEST(Permutation, all_orders_of_four_elements_are_equally_likely) {
  std::vector<std::int64_t> counts(256, 0);
  for (std::uint64_t key = 0; key < 24'000; ++key) {
    const Permutation permutation(4, key);
    ++counts[permutation(0) << 6 | permutation(1) << 4 | permutation(2) << 2 | permutation(3)];
  }
  std::vector<std::int64_t> orders;
  std::copy_if(counts.begin(), counts.end(), std::back_inserter(orders), [](std::int64_t count) { return count > 0; });
  ASSERT_EQ(orders.size(), 24U);
  EXPECT_LT(chi_square(orders), 49.7);  // 23 degrees of freedom, p = 0.001
}

TEST(Permutation, every_element_goes_everywhere_equally_often) {
  for (const std::int64_t n : {10, 100, 300}) {
    std::vector<std::int64_t> counts(n * n, 0);
    for (std::uint64_t key = 0; key < 10'000; ++key) {
      const Permutation permutation(n, mix_key(99, key));
      for (const std::int64_t i : {std::int64_t{0}, n / 2, n - 1}) ++counts[i * n + permutation(i)];
    }
    for (const std::int64_t i : {std::int64_t{0}, n / 2, n - 1}) {
      const std::vector<std::int64_t> row(counts.begin() + i * n, counts.begin() + (i + 1) * n);
      const double freedom = static_cast<double>(n - 1);
      EXPECT_LT(chi_square(row), freedom + 4 * std::sqrt(2 * freedom)) << "element " << i << " of " << n;
    }
  }
}

TEST(Permutation, neighbours_do_not_stay_neighbours) {
  const std::int64_t n = 100'000;
  const Permutation permutation(n, 8);
  std::vector<std::int64_t> steps(16, 0);  // distance from each image to the next, in sixteenths of n
  for (std::int64_t i = 0; i + 1 < n; ++i) {
    ++steps[((permutation(i + 1) - permutation(i) + n) % n) * 16 / n];
  }
  EXPECT_LT(chi_square(steps), 37.7);  // 15 degrees of freedom, p = 0.001
}

TEST(Permutation, refuses_an_empty_set_and_an_index_outside) {
  EXPECT_THROW(Permutation(0, 1), std::logic_error);
  EXPECT_THROW(Permutation(10, 1)(10), std::logic_error);
  EXPECT_THROW(Permutation(10, 1)(-1), std::logic_error);
}

TEST(MixKey, depends_on_every_word_and_on_their_order) {
  EXPECT_NE(mix_key(1, 2), mix_key(2, 1));
  EXPECT_NE(mix_key(1, 2, 3), mix_key(1, 2, 4));
  EXPECT_NE(mix_key(1, 2), mix_key(1, 2, 0));
  EXPECT_NE(mix_key(0), mix_key(0, 0));
}

}  // namespace
}  // namespace polaron

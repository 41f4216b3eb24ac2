// Results that are the same to the bit for any number of threads.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <tuple>

#include "ops/reference.h"

namespace polaron::test {

// run() gives a tuple of matrices; it is called on one thread and then on each of the counts.
template <class Run>
void expect_same_bits_on_threads(std::initializer_list<int> counts, Run run) {
  const auto on = [&](int threads) {
    const Threads fixed(threads);
    return run();
  };
  const auto one = on(1);
  for (const int threads : counts) {
    const auto many = on(threads);
    int number = 0;
    const auto compare = [&](const auto& a, const auto& b) {
      ++number;
      EXPECT_TRUE(a.same_bits(b)) << "result " << number << " on " << threads << " threads";
    };
    std::apply([&](const auto&... a) { std::apply([&](const auto&... b) { (compare(a, b), ...); }, many); }, one);
  }
}

}  // namespace polaron::test

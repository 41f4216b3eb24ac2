// How the matrix ops use the threads, and the memory they work in.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/scratch.h"

namespace polaron::cpu {

// The OpenMP threads there were when the ops were made, and how the matrices of a group are spread over them.
// One matrix a thread, each with serial BLAS and LAPACK (OpenBLAS is serial inside a parallel region), where that keeps
// most threads busy or the matrices are too small to be worth sharing: no synchronisation within a matrix, and its
// operands stay in one core's cache. Otherwise matrix after matrix with threaded BLAS, whose results may differ from
// the serial ones in the last bits.
class MatrixTeam {
 public:
  MatrixTeam() : threads_(omp_get_max_threads()) {}

  int threads() const { return threads_; }
  // Whether each of `count` matrices of so many elements is handled by one thread alone.
  bool one_each(std::int64_t count, std::int64_t elements) const {
    constexpr std::int64_t kSmall = std::int64_t{1} << 18U;
    return elements <= kSmall || 4 * count >= 3 * threads_;
  }
  // How many matrices are in work at the same time.
  int slots(std::int64_t count, std::int64_t elements) const {
    return one_each(count, elements) ? static_cast<int>(std::clamp<std::int64_t>(count, 1, threads_)) : 1;
  }

  // Threads that share a matrix.
  int threads_each(std::int64_t count, std::int64_t elements) const { return one_each(count, elements) ? 1 : threads_; }

  // Calls body(matrix, slot) for every matrix below `count`, slot < slots(count, elements). Matrix i always runs on the
  // same thread, so that the next op finds it in that cache.
  template <class Body>
  void for_each(std::int64_t count, std::int64_t elements, Body&& body) const {
    const int together = slots(count, elements);
    if (together > 1) {
#pragma omp parallel for schedule(static, 1) num_threads(together)
      for (std::int64_t matrix = 0; matrix < count; ++matrix) body(matrix, omp_get_thread_num());
    } else {
      // A parallel region of one thread does not count as one: OpenBLAS must be told.
      const ThreadLimit limit(threads_each(count, elements));
      for (std::int64_t matrix = 0; matrix < count; ++matrix) body(matrix, 0);
    }
  }
  // The same with a workspace of `floats` floats, the caller's until it returns, in place of the slot.
  template <class Body>
  void for_each_with(std::size_t floats, std::int64_t count, std::int64_t elements, Body&& body) {
    workspaces_.reserve(slots(count, elements), floats);
    for_each(count, elements, [&](std::int64_t matrix, int slot) { body(matrix, workspaces_.for_thread(slot)); });
  }

 private:
  class ThreadLimit {
   public:
    explicit ThreadLimit(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
    ThreadLimit(const ThreadLimit&) = delete;
    ThreadLimit& operator=(const ThreadLimit&) = delete;
    ~ThreadLimit() { omp_set_num_threads(before_); }

   private:
    int before_;
  };

  int threads_;
  ThreadScratch workspaces_;
};

// Calls body(first, last) for ranges that cover [0, n), on all threads unless already inside a parallel region or n is
// less than `grain`. For bodies whose result does not depend on how the range is cut.
template <class Body>
void for_ranges(std::int64_t n, std::int64_t grain, Body&& body) {
  if (n < grain || omp_in_parallel()) {
    if (n > 0) body(std::int64_t{0}, n);
    return;
  }
#pragma omp parallel
  {
    const std::int64_t parts = omp_get_num_threads();
    const std::int64_t part = omp_get_thread_num();
    const std::int64_t first = n * part / parts;
    const std::int64_t last = n * (part + 1) / parts;
    if (first < last) body(first, last);
  }
}

}  // namespace polaron::cpu

// How bench_kernels measures a case, and what the device can do at most.
#pragma once

#include <array>
#include <cstddef>
#include <string>

#include "cases.h"

namespace polaron::bench {

// How much work a measurement is.
struct Effort {
  int repeats = 5;        // measurements; their median counts
  double seconds = 0.03;  // of one of them at least: so many calls are queued one after the other
  // Calls take turns on several sets of operands, which together have at least so many bytes: more than a cache keeps.
  std::size_t rotated_bytes = 512UL << 20U;
  std::int64_t largest_product = 8192;    // rows of the square product that gives the GEMM rate
  std::size_t copied_bytes = 1UL << 30U;  // of the copy that gives the memory rate
};
Effort least_effort();  // one call of everything, small limits: for trying the program out

struct Limits {
  std::array<double, 3> gemm_flops{};  // FLOP/s of the largest square product of random numbers, by Operands
  double copy_bytes_per_s = 0;         // bytes read and bytes written of a large copy
  double rate(Operands operands) const { return gemm_flops[static_cast<std::size_t>(operands)]; }
};
// Without bf16 (for comparisons in fp32) only the rate of fp32. A backend without TF32 has fp32's rate for it.
Limits measure_limits(Backend& backend, Stream& stream, DType dtype, const Effort& effort);

// The larger of the times that arithmetic and traffic take at the limits, in milliseconds.
double floor_ms(const Case& one, const Limits& limits);

// Milliseconds of one call: calls are queued one after the other between two waits of the host, and their number is
// large enough that the waits do not count; gaps between launches do. Throws Error(Exit::device) where the operands do
// not fit.
double time_case(Backend& backend, Stream& stream, const Case& one, const Effort& effort);

}  // namespace polaron::bench

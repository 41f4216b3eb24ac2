// A stable sort of small keys on the device.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace polaron::cuda {

// Sorts the numbers 0 .. count-1 by keys[number], equal keys in the order of their numbers: on return order[i] is the
// number in place i and sorted[i] its key. Keys must lie in [0, limit); others are taken for limit and come last. order
// and sorted: device memory of `count`; scratch: sort_scratch(count) integers.
void sort_by_key(Stream& stream, const std::int32_t* keys, std::int64_t count, std::int32_t limit, std::int32_t* order,
                 std::int32_t* sorted, std::int32_t* scratch);
std::int64_t sort_scratch(std::int64_t count);

}  // namespace polaron::cuda

// docs/benchmarks/gpu-floors.md.
#pragma once

#include <string>
#include <vector>

#include "timing.h"

namespace polaron::bench {

inline constexpr Limits kH200{{989.4e12, 494.7e12, 67e12}, 4.8e12};  // by its datasheet, dense

// What every op of these models needs at least, and the time that takes at the limits, as markdown.
std::string floors_markdown(const std::vector<ModelShape>& models, const Limits& limits);

}  // namespace polaron::bench

// What the tests of fp32 and of bf16 linear layers share.
#pragma once

#include <cstdint>
#include <string>

namespace polaron::test {

struct LayerSizes {
  std::int64_t rows, in, out;
};

inline std::string describe(const LayerSizes& s) {
  return std::to_string(s.rows) + " rows, " + std::to_string(s.in) + " -> " + std::to_string(s.out);
}

}  // namespace polaron::test

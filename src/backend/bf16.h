// bfloat16 on the host: the upper half of a float. Arithmetic is done in fp32; storing rounds to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

#include "backend/host_device.h"

namespace polaron {

struct bf16 {
  std::uint16_t bits;
};

POLARON_HD inline float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// NaN stays NaN (its mantissa must not round to infinity's); values beyond the largest bf16 become infinity. The choice
// is made before the shift, in 32 bits: compilers then vectorise it as one masked operation.
POLARON_HD inline bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  const std::uint32_t quiet_nan = bits | 0x400000U;
  return {static_cast<std::uint16_t>((value != value ? quiet_nan : rounded) >> 16)};
}

}  // namespace polaron

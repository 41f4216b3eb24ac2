// The rate that a utilization is a share of.
#pragma once

#include "backend/backend.h"

namespace polaron {

// Highest rate in FLOP/s that the device's GEMM of operands of this type reaches on a large square product, measured in
// well under a second.
double measure_gemm_rate(Backend& backend, DType dtype);

}  // namespace polaron

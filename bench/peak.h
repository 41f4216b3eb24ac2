// What the machine at hand can do at most, by instructions that touch registers only.
#pragma once

namespace polaron::bench {

// GFLOP/s of all OpenMP threads together, the best of several measurements of some 30 ms.
double fma_peak();       // fp32 fused multiply-adds
double amx_bf16_peak();  // products of tiles; 0 where there is no AMX

}  // namespace polaron::bench

// The makers of LinearOps with a chosen engine, for tests and measurements; families.h has the one that programs use.
#pragma once

#include <memory>

#include "backend/model_ops.h"
#include "cpu/gemm.h"

namespace polaron::cpu {

// unit: for bf16.
std::unique_ptr<LinearOps> make_linear_ops(GemmEngine engine, const BlockUnit& unit = default_block_unit());

}  // namespace polaron::cpu

// How an optimizer's settings become the arguments of the ops that orthogonalize a momentum: for the optimizer itself,
// and for diagnostics that repeat what it does.
#pragma once

#include <cstdint>

#include "backend/optimizer_ops.h"
#include "config/config.h"
#include "model/parameters.h"

namespace polaron {

struct SketchRule {
  Sketch kind;
  int power;  // iterations
  BasisMethod basis;
};

// tall: of the matrix as it is stored, more rows than columns.
SketchRule sketch_rule(const OptimizerSettings& settings, bool tall);

NewtonSchulzSpec newton_schulz_spec(const OptimizerSettings& settings);

// Of a matrix's random draws in one step (0: the first). With `shared_columns` (quirk Q11) k, v and the output matrix
// of an attention have q's: the authors stack these four, and draw once for a stack. MLP matrices keep their own.
PhiloxKey sketch_key(std::uint64_t seed, std::int64_t step, const ParameterTable& table, std::size_t parameter,
                     std::size_t block, bool shared_columns);

}  // namespace polaron

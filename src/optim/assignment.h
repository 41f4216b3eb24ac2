// Which optimizer every parameter gets: by role, overridden by name pattern; matrices split into their blocks and
// gathered into classes that are stepped together.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/tensor.h"
#include "config/config.h"
#include "model/parameters.h"

namespace polaron {

// A parameter under AdamW or SGD: the whole stored range (its padding stays zero under both).
struct ElementwiseItem {
  std::size_t parameter = 0;  // index into the table
  OptimizerSettings settings;
};

// One logical matrix under a matrix optimizer.
struct MatrixItem {
  std::size_t parameter = 0;
  std::size_t block = 0;  // of the parameter
  std::int64_t rows = 0, cols = 0;
  float scale = 1.0F;  // factor on lr: the scale rule, times the compensation for rank
  std::string label;   // "blocks.3.attention.qkv.weight[q]"
};

// Matrices of one shape (transposed where tall) and equal settings.
struct MatrixClass {
  OptimizerSettings settings;
  std::int64_t rows = 0, cols = 0;  // rows <= cols
  std::int64_t rank = 0;            // 0: full orthogonalization
  std::vector<MatrixItem> items;
};

struct Assignment {
  std::vector<ElementwiseItem> elementwise;
  std::vector<MatrixClass> classes;
  // Names of matrices for which the requested rank is not below min(rows, cols): they are orthogonalized fully.
  std::vector<std::string> full_rank;
  // "head", "scalars": groups of the config that are not at their defaults, though no parameter of the model has the
  // role.
  std::vector<std::string> idle_groups;
};

// precision: of the model's products, which is also that of Newton-Schulz where newton_schulz_precision is "auto".
// Error(Exit::usage) for an override that no parameter gets: its pattern matches none, or earlier ones take them all.
Assignment assign_optimizers(const OptimizerConfig& config, const TransformerConfig& model, const ParameterTable& table,
                             DType precision = DType::f32);

// Rank in directions: the number given, or the fraction of the model's width, rounded; at least 1.
std::int64_t resolve_rank(const RankSpec& rank, std::int64_t width);

// Step scale of a matrix optimizer: original sqrt(max(1, rows/cols)) (Keller Jordan), match_rms_adamw 0.2
// sqrt(max(rows, cols)) (Moonlight, arXiv 2502.16982), none 1.
double step_scale(ScaleKind kind, std::int64_t rows, std::int64_t cols);

// The start-up table: one row a group of parameters with the same role and settings.
struct AssignmentRow {
  std::string parameters;  // "matrix 768 x 768"; of others their role
  std::int64_t tensors = 0;
  std::int64_t elements = 0;
  std::string optimizer;  // "low_rank_muon, rank 96 (columns), lr 0.02, ..."
};
std::vector<AssignmentRow> describe(const Assignment& assignment, const ParameterTable& table);

}  // namespace polaron

// The field table of an optimizer group. Part of fields.h, which is the header to include.
#pragma once

#include "config/fields.h"

namespace polaron {

inline constexpr Choice coefficient_choices[] = {
    {"polar_express", "five rows made for inputs with a wide range of singular values (arXiv 2505.16932)"},
    {"jordan", "one row, 3.4445, -4.7750, 2.0315, five times: the original Muon"},
    {"you", "five rows that map singular values from 0.01 to within 3 % of 1"},
    {"classic", "2, -1.5, 0.5, twelve times: converges, slowly"},
    {"torch", "jordan's row with the normalization of torch.optim.Muon"},
};

constexpr bool uses_momentum(OptimizerKind kind) {
  return kind == OptimizerKind::sgd || kind == OptimizerKind::muon || kind == OptimizerKind::low_rank_muon;
}
constexpr bool is_muon(OptimizerKind kind) {
  return kind == OptimizerKind::muon || kind == OptimizerKind::low_rank_muon;
}
constexpr bool is_low_rank(OptimizerKind kind) {
  return kind == OptimizerKind::low_rank_muon || kind == OptimizerKind::low_rank_msgd;
}
// Orthogonalizes, and so is for matrices only.
constexpr bool is_matrix_kind(OptimizerKind kind) { return kind != OptimizerKind::adamw && kind != OptimizerKind::sgd; }

template <class V>
void describe(V& v, OptimizerSettings& c) {
  const std::string_view adamw = "adamw";
  const std::string_view momentum = "sgd, muon and low_rank_muon";
  const std::string_view muon = "muon and low_rank_muon";
  const std::string_view matrix = "muon, low_rank_muon, msgd and low_rank_msgd";
  const std::string_view low_rank = "low_rank_muon and low_rank_msgd";

  v.field("type", c.kind, {.help = "the update rule", .default_text = "`muon` for matrices, `adamw` for the others"});
  v.field("lr", c.lr,
          {.help = "peak learning rate; the schedule multiplies it. 0: the parameters stay as they are",
           .min = 0,
           .default_text = "depends on `type`"});
  v.field("weight_decay", c.weight_decay,
          {.help = "decoupled: each step first multiplies the weights by 1 - lr x weight_decay",
           .min = 0,
           .default_text = "depends on `type`"});
  v.field("beta1", c.beta1,
          {.help = "decay of the gradient's mean",
           .min = 0,
           .max = 1,
           .below_max = true,
           .applies = c.kind == OptimizerKind::adamw,
           .applies_to = adamw});
  v.field("beta2", c.beta2,
          {.help = "decay of the squared gradient's mean",
           .min = 0,
           .max = 1,
           .below_max = true,
           .applies = c.kind == OptimizerKind::adamw,
           .applies_to = adamw});
  v.field("eps", c.eps,
          {.help = "added to the root of the squared gradient's mean",
           .min = 0,
           .above_min = true,
           .applies = c.kind == OptimizerKind::adamw,
           .applies_to = adamw});
  v.field(
      "bf16_weights", c.bf16_weights,
      {.help = "Q3 of docs/paper.md: weights are rounded to bf16 after every update, so that small updates are lost",
       .applies = c.kind == OptimizerKind::adamw,
       .applies_to = adamw});
  v.field("bf16_moments", c.bf16_moments,
          {.help = "Q18 of docs/paper.md: both means are rounded to bf16 after every update",
           .applies = c.kind == OptimizerKind::adamw,
           .applies_to = adamw});
  v.field("momentum", c.momentum,
          {.help = "mu, the decay of the momentum",
           .min = 0,
           .max = 1,
           .below_max = true,
           .default_text = "depends on `type`",
           .applies = uses_momentum(c.kind),
           .applies_to = momentum});
  v.field("momentum_form", c.momentum_form,
          {.help = "how the gradient enters the momentum b (sgd always takes the heavy form)",
           .applies = is_muon(c.kind),
           .applies_to = muon});
  v.field("nesterov", c.nesterov,
          {.help = "step along g and the new momentum combined rather than the momentum alone",
           .default_text = "depends on `type`",
           .applies = uses_momentum(c.kind),
           .applies_to = momentum});
  v.field("momentum_warmup_steps", c.momentum_warmup_steps,
          {.help = "steps over which the momentum rises along a line from `momentum_start`; 0: none",
           .min = 0,
           .max = largest_count,
           .applies = uses_momentum(c.kind),
           .applies_to = momentum});
  v.field("momentum_start", c.momentum_start,
          {.help = "the momentum of the first step",
           .min = 0,
           .max = 1,
           .below_max = true,
           .applies = uses_momentum(c.kind) && c.momentum_warmup_steps > 0,
           .applies_to = "a momentum warm-up (momentum_warmup_steps above 0)",
           .applies_instead = uses_momentum(c.kind) ? "momentum_warmup_steps is 0 here" : ""});
  v.field("orthogonalizer", c.orthogonalizer,
          {.help = "how a matrix is replaced by the nearest one with orthonormal rows or columns",
           .applies = is_matrix_kind(c.kind),
           .applies_to = matrix});
  const bool newton_schulz = is_matrix_kind(c.kind) && c.orthogonalizer == Orthogonalizer::newton_schulz;
  v.field("coefficients", c.coefficients,
          {.help = "table of the Newton-Schulz polynomial's coefficients, one row a step, the last one repeating",
           .choices = coefficient_choices,
           .applies = newton_schulz,
           .applies_to = "the newton_schulz orthogonalizer",
           .applies_instead = is_matrix_kind(c.kind) ? "the orthogonalizer here is exact" : ""});
  v.field("newton_schulz_steps", c.newton_schulz_steps,
          {.help = "iterations; 0: as many as the table has",
           .min = 0,
           .max = 100,
           .applies = newton_schulz,
           .applies_to = "the newton_schulz orthogonalizer",
           .applies_instead = is_matrix_kind(c.kind) ? "the orthogonalizer here is exact" : ""});
  v.field("newton_schulz_precision", c.newton_schulz_precision,
          {.help = "what the Newton-Schulz iteration computes in",
           .applies = newton_schulz,
           .applies_to = "the newton_schulz orthogonalizer",
           .applies_instead = is_matrix_kind(c.kind) ? "the orthogonalizer here is exact" : ""});
  v.field("scale", c.scale,
          {.help = "factor on the orthogonalized matrix [rows, columns]",
           .applies = is_matrix_kind(c.kind),
           .applies_to = matrix});
  v.field("rank", c.rank,
          {.help = "directions of the subspace: a number, such as 64, or a fraction of the model's width, such as "
                   "\"1/8\". A matrix whose smaller side is not larger is orthogonalized in full",
           .applies = is_low_rank(c.kind),
           .applies_to = low_rank});
  v.field("sketch", c.sketch,
          {.help = "how the subspace is drawn, anew at every step",
           .applies = is_low_rank(c.kind),
           .applies_to = low_rank});
  const bool power = is_low_rank(c.kind) && c.sketch == SketchKind::power;
  v.field("power_iterations", c.power_iterations,
          {.help = "power iterations of the sketch",
           .min = 1,
           .max = 100,
           .applies = power,
           .applies_to = "the power sketch",
           .applies_instead = is_low_rank(c.kind) ? "the sketch here is another" : ""});
  v.field("basis", c.basis,
          {.help = "how the sketch is made orthonormal", .applies = is_low_rank(c.kind), .applies_to = low_rank});
  v.field("rank_lr_compensation", c.rank_lr_compensation,
          {.help = "factor on the learning rate that makes up for the low rank",
           .applies = is_low_rank(c.kind),
           .applies_to = low_rank});
}

}  // namespace polaron

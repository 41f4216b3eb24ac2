// The JSON names of the enums, each with what it means. The field table, messages and docs/config.md all take them from
// here; other parts of the program may use name_of() for tables.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

#include "config/config.h"

namespace polaron {

template <class E>
struct EnumName {
  E value;
  std::string_view name;
  std::string_view help;
};

constexpr auto enum_names(Exchange) {
  return std::to_array<EnumName<Exchange>>({
      {Exchange::parameters, "parameters", "gradients go to their owners, updated parameters come back"},
      {Exchange::factors, "factors",
       "gradients go to their owners; of a low-rank update its two factors come back, (m+n)r numbers instead of mn"},
      {Exchange::sketch, "sketch",
       "only sketch and projection of a low-rank update are summed, (m+n)r numbers in all; every process keeps the "
       "momentum of its own gradients (needs sketch columns or gaussian, and gradient_clip 0)"},
  });
}
constexpr auto enum_names(Recompute) {
  return std::to_array<EnumName<Recompute>>({
      {Recompute::none, "none", "every activation is kept until its backward pass"},
      {Recompute::block, "block",
       "only the input of each block is kept, and the block's forward pass runs again in the backward pass: less "
       "memory "
       "for about a third more work"},
  });
}

constexpr auto enum_names(ScheduleKind) {
  return std::to_array<EnumName<ScheduleKind>>({
      {ScheduleKind::constant, "constant", "the peak rate until the end"},
      {ScheduleKind::linear, "linear", "falls along a line from the end of the warm-up to the last step"},
      {ScheduleKind::cosine, "cosine", "falls along half a cosine from the end of the warm-up to the last step"},
      {ScheduleKind::wsd, "wsd",
       "warmup, stable, decay: the peak rate, then a linear fall in the last part of the run"},
      {ScheduleKind::trapezoid, "trapezoid",
       "the same, along the line that would reach 0 one step after the last: as modded-nanogpt"},
  });
}

constexpr auto enum_names(OptimizerKind) {
  return std::to_array<EnumName<OptimizerKind>>({
      {OptimizerKind::adamw, "adamw", "Adam with decoupled weight decay, as torch.optim.AdamW"},
      {OptimizerKind::sgd, "sgd", "gradient descent with momentum, as torch.optim.SGD but with decoupled decay"},
      {OptimizerKind::muon, "muon", "steps along the orthogonalized momentum"},
      {OptimizerKind::low_rank_muon, "low_rank_muon",
       "Muon whose momentum is orthogonalized within a random subspace of `rank` directions (arXiv 2509.11983)"},
      {OptimizerKind::msgd, "msgd", "steps along the orthogonalized gradient; no momentum, no state"},
      {OptimizerKind::low_rank_msgd, "low_rank_msgd", "the same within a random subspace of `rank` directions"},
  });
}

constexpr auto enum_names(MomentumForm) {
  return std::to_array<EnumName<MomentumForm>>({
      {MomentumForm::ema, "ema", "b = momentum b + (1 - momentum) g"},
      {MomentumForm::heavy, "heavy", "b = momentum b + g"},
  });
}

constexpr auto enum_names(SketchKind) {
  return std::to_array<EnumName<SketchKind>>({
      {SketchKind::columns, "columns", "distinct columns drawn uniformly: free, and about as good as gaussian"},
      {SketchKind::columns_authors, "columns_authors",
       "Q1 of docs/paper.md: of a matrix with more rows than columns only as many rows as it has columns, the first "
       "ones, are drawn from"},
      {SketchKind::gaussian, "gaussian", "the matrix times a Gaussian one"},
      {SketchKind::power, "power", "gaussian, then `power_iterations` of X (X^T Q): closer to the leading directions"},
  });
}

constexpr auto enum_names(BasisKind) {
  return std::to_array<EnumName<BasisKind>>({
      {BasisKind::automatic, "auto", "the backend's own choice; householder on a CPU"},
      {BasisKind::householder, "householder", "Householder QR: the reference"},
      {BasisKind::cholesky_qr, "cholesky_qr", "three shifted Cholesky-QR passes"},
  });
}

constexpr auto enum_names(ScaleKind) {
  return std::to_array<EnumName<ScaleKind>>({
      {ScaleKind::original, "original", "sqrt(max(1, rows/columns))"},
      {ScaleKind::match_rms_adamw, "match_rms_adamw",
       "0.2 sqrt(max(rows, columns)): an update about as large as AdamW's, so that AdamW's lr (say 3e-4) fits"},
      {ScaleKind::none, "none", "1"},
  });
}

constexpr auto enum_names(RankCompensation) {
  return std::to_array<EnumName<RankCompensation>>({
      {RankCompensation::none, "none", "1, as in the paper's code"},
      {RankCompensation::sqrt, "sqrt", "sqrt(min(rows, columns)/rank): the update is as large as a full-rank one"},
  });
}

constexpr auto enum_names(Orthogonalizer) {
  return std::to_array<EnumName<Orthogonalizer>>({
      {Orthogonalizer::newton_schulz, "newton_schulz", "an odd matrix polynomial, iterated"},
      {Orthogonalizer::exact, "exact", "singular value decomposition: slow, for checks"},
  });
}

constexpr auto enum_names(NewtonSchulzPrecision) {
  return std::to_array<EnumName<NewtonSchulzPrecision>>({
      {NewtonSchulzPrecision::automatic, "auto", "bf16 where `precision` is bf16, else fp32"},
      {NewtonSchulzPrecision::fp32, "fp32", "as the momentum"},
      {NewtonSchulzPrecision::bf16, "bf16",
       "matrices rounded to bf16 before every product, sums in fp32, as torch.optim.Muon; on a CPU without AMX it is "
       "slower than fp32, and refused unless `allow_slow_bf16` is set"},
  });
}

constexpr auto enum_names(ModelPreset) {
  return std::to_array<EnumName<ModelPreset>>({
      {ModelPreset::gpt2, "gpt2", "LayerNorm, learned positions, GELU (tanh), biases, tied embeddings"},
      {ModelPreset::llama, "llama", "RMSNorm, rotary positions, SwiGLU, no biases, a head of its own"},
  });
}

constexpr auto enum_names(MlpKind) {
  return std::to_array<EnumName<MlpKind>>({
      {MlpKind::gelu, "gelu", "GELU by its tanh approximation, as GPT-2"},
      {MlpKind::gelu_exact, "gelu_exact", "GELU with erf"},
      {MlpKind::swiglu, "swiglu", "silu(gate) * up, as LLaMA; three matrices instead of two"},
      {MlpKind::relu2, "relu2", "max(0, x)^2"},
  });
}

constexpr auto enum_names(NormChoice) {
  return std::to_array<EnumName<NormChoice>>({
      {NormChoice::layernorm, "layernorm", "mean removed, divided by the standard deviation"},
      {NormChoice::rmsnorm, "rmsnorm", "divided by the root mean square"},
  });
}

constexpr auto enum_names(Positions) {
  return std::to_array<EnumName<Positions>>({
      {Positions::learned, "learned", "a table with one row a position, added to the token embedding"},
      {Positions::rotary, "rotary", "queries and keys are rotated (half-split, as Hugging Face's LLaMA)"},
  });
}

constexpr auto enum_names(RotaryFrequencies) {
  return std::to_array<EnumName<RotaryFrequencies>>({
      {RotaryFrequencies::full, "full", "rotary_base^(-2i/head_size), all of the head turns"},
      {RotaryFrequencies::half_truncated, "half_truncated",
       "1024^(-i/(n-1)) for the first n = head_size/4 pairs, turned the other way; the others stand still"},
  });
}

constexpr auto enum_names(SoftcapForm) {
  return std::to_array<EnumName<SoftcapForm>>({
      {SoftcapForm::tanh, "tanh", "c tanh(z/c)"},
      {SoftcapForm::algebraic, "algebraic", "c z / sqrt(z^2 + c^2)"},
  });
}

constexpr auto enum_names(InitForm) {
  return std::to_array<EnumName<InitForm>>({
      {InitForm::normal, "normal", "normal, deviation init_std"},
      {InitForm::fan_in, "fan_in", "uniform, deviation init_gain / sqrt(columns)"},
  });
}

// The JSON name of a value of one of the enums above.
template <class E>
constexpr std::string_view name_of(E value) {
  for (const auto& entry : enum_names(E{})) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

// The value with this JSON name, if there is one.
template <class E>
constexpr std::optional<E> value_of(std::string_view name) {
  for (const auto& entry : enum_names(E{})) {
    if (entry.name == name) return entry.value;
  }
  return std::nullopt;
}

}  // namespace polaron

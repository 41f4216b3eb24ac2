#include "config/fields.h"

namespace polaron {

OptimizerKind default_kind(OptimizerGroup group) {
  return group == OptimizerGroup::matrices ? OptimizerKind::muon : OptimizerKind::adamw;
}

OptimizerSettings default_settings(OptimizerGroup group, OptimizerKind kind, ScaleKind scale) {
  const bool matrices = group == OptimizerGroup::matrices;
  OptimizerSettings s;
  s.kind = kind;
  switch (kind) {
    case OptimizerKind::adamw:
      // The usual values of language model training. Embeddings and vectors see sparse or few gradients and bear more.
      s.lr = matrices ? 3e-4 : 3e-3;
      s.weight_decay = matrices ? 0.1 : 0.0;
      break;
    case OptimizerKind::sgd:
      s.lr = 0.01;
      s.weight_decay = matrices ? 0.01 : 0.0;
      s.momentum = 0.9;
      s.momentum_form = MomentumForm::heavy;
      s.nesterov = false;
      break;
    case OptimizerKind::muon:
    case OptimizerKind::low_rank_muon:
    case OptimizerKind::msgd:
    case OptimizerKind::low_rank_msgd:
      // Muon's published values; under match_rms_adamw an update is as large as AdamW's, and so is the fitting rate.
      s.lr = scale == ScaleKind::match_rms_adamw ? 3e-4 : 0.02;
      s.weight_decay = scale == ScaleKind::match_rms_adamw ? 0.1 : 0.01;
      s.scale = scale;
      break;
  }
  return s;
}

void apply_preset(TransformerConfig& model, ModelPreset preset) {
  const bool llama = preset == ModelPreset::llama;
  model.preset = preset;
  model.mlp = llama ? MlpKind::swiglu : MlpKind::gelu;
  model.norm = llama ? NormChoice::rmsnorm : NormChoice::layernorm;
  model.norm_affine = true;
  model.norm_eps = 1e-5;
  model.positions = llama ? Positions::rotary : Positions::learned;
  model.rotary_base = 10000.0;
  model.biases = !llama;
  model.tied_embeddings = !llama;
  model.init_scale_residual = !llama;
}

Config default_config() {
  Config c;
  apply_preset(c.model, ModelPreset::gpt2);
  const auto group = [](OptimizerGroup which) { return default_settings(which, default_kind(which)); };
  c.optimizer.matrices = group(OptimizerGroup::matrices);
  c.optimizer.embeddings = group(OptimizerGroup::embeddings);
  c.optimizer.head = group(OptimizerGroup::head);
  c.optimizer.vectors = group(OptimizerGroup::vectors);
  c.optimizer.scalars = group(OptimizerGroup::scalars);
  return c;
}

}  // namespace polaron

// The field table of the model. Part of fields.h, which is the header to include.
#pragma once

#include "config/fields.h"

namespace polaron {

template <class V>
void describe(V& v, TransformerConfig& c) {
  v.field("preset", c.preset, {.help = "where the defaults of the other keys come from; any of them may be given too"});
  v.field("layers", c.layers, {.help = "transformer blocks", .min = 1, .max = 10000, .default_text = "required"});
  v.field("width", c.width,
          {.help = "size of the residual stream", .min = 1, .max = largest_size, .default_text = "required"});
  v.field("heads", c.heads, {.help = "attention heads", .min = 1, .max = largest_size, .default_text = "required"});
  v.field("kv_heads", c.kv_heads,
          {.help = "heads of keys and values, each shared by heads/kv_heads query heads (grouped-query attention). "
                   "Divides `heads`",
           .min = 1,
           .max = largest_size,
           .default_text = "`heads`"});
  v.field("head_size", c.head_size,
          {.help = "size of a head; even with rotary positions",
           .min = 1,
           .max = largest_size,
           .default_text = "width/heads, which must then be whole"});
  v.field("mlp_hidden", c.mlp_hidden,
          {.help = "hidden size of the MLP. Any size: storage is padded where that is faster",
           .min = 1,
           .max = largest_size,
           .default_text = "4 width; swiglu: 8/3 width, rounded up to a multiple of 64"});
  v.field("vocabulary", c.vocabulary,
          {.help = "tokens that exist; 0: as many as the data's vocabulary has. Data with a larger id is refused",
           .min = 0,
           .max = 2147483647});
  v.field("context_length", c.context_length,
          {.help = "the longest sequence the model can take",
           .min = 1,
           .max = largest_size,
           .default_text = "`training.sequence_length`"});
  v.field("mlp", c.mlp, {.help = "the MLP's activation", .default_text = "preset"});
  v.field("norm", c.norm, {.help = "the normalization before attention, MLP and head", .default_text = "preset"});
  v.field("norm_affine", c.norm_affine, {.help = "norms have a learned gain, LayerNorm a learned shift too"});
  v.field("norm_eps", c.norm_eps, {.help = "added to the variance or mean square", .min = 0, .above_min = true});
  v.field("positions", c.positions, {.help = "how attention knows where a token stands", .default_text = "preset"});
  v.field("rotary_base", c.rotary_base,
          {.help = "base of the rotation's wavelengths; used with rotary positions", .min = 1, .above_min = true});
  v.field("biases", c.biases, {.help = "linear layers have biases", .default_text = "preset"});
  v.field("tied_embeddings", c.tied_embeddings,
          {.help = "the head is the token table; the optimizer treats it as an embedding", .default_text = "preset"});
  v.field("qk_norm", c.qk_norm,
          {.help = "queries and keys are divided by their root mean square, head by head, before the rotation"});
  v.field("attention_scale", c.attention_scale,
          {.help = "factor on the products of queries and keys",
           .min = 0,
           .above_min = true,
           .default_text = "1/sqrt(head_size)"});
  v.field("attention_window", c.attention_window,
          {.help = "a token sees this many last tokens, itself included; 0: all", .min = 0, .max = largest_size});
  v.field("document_mask", c.document_mask,
          {.help = "attention stays within a document (documents begin with the vocabulary's separator token)"});
  v.field("logit_softcap", c.logit_softcap,
          {.help = "c in c tanh(logits/c), which keeps logits within -c and c; 0: off", .min = 0});
  v.field("init_std", c.init_std,
          {.help = "standard deviation of the initial embeddings and matrices", .min = 0, .above_min = true});
  v.field("init_scale_residual", c.init_scale_residual,
          {.help = "attention and MLP output matrices start smaller, by 1/sqrt(2 layers)", .default_text = "preset"});
}

}  // namespace polaron

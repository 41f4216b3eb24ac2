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
  v.field("head_vocabulary", c.head_vocabulary,
          {.help = "entries of the softmax of an untied head, at least `vocabulary`; those beyond it are learned to be "
                   "unlikely",
           .min = 0,
           .max = 2147483647,
           .default_text = "`vocabulary`"});
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
  v.field("rotary_frequencies", c.rotary_frequencies,
          {.help = "how fast the pairs of a head turn; used with rotary positions"});
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
  v.field("logit_softcap", c.logit_softcap, {.help = "c, which keeps logits within -c and c; 0: off", .min = 0});
  v.field("logit_softcap_form", c.logit_softcap_form, {.help = "the curve of the soft-cap"});
  v.field("embedding_norm", c.embedding_norm,
          {.help = "the token embedding is normalized, without gain, before the first block"});
  v.field("attention_norm", c.attention_norm, {.help = "there is a norm before attention"});
  v.field("v_norm", c.v_norm, {.help = "values are divided by their root mean square too, with `qk_norm`"});
  v.field("value_embeddings", c.value_embeddings,
          {.help = "token tables that are mixed into the values of as many first blocks, and again of the last ones, "
                   "by learned scalars; 0: none",
           .min = 0,
           .max = 1000});
  v.field("x0_mixing", c.x0_mixing,
          {.help = "each block begins with a x + b x0: the stream and the embedding, mixed by learned scalars"});
  v.field("skips", c.skips,
          {.help = "U-net skips, `[[from, to], ...]`: the output of block `from`, times a learned scalar, is added "
                   "before block `to`. Blocks count from 0"});
  v.field("attention_free_blocks", c.attention_free_blocks,
          {.help = "blocks without attention, counted from 0", .min = 0, .max = most_blocks});
  v.field(
      "window_block", c.window_block,
      {.help = "attention windows that grow during the run, in blocks of so many tokens, which divide the sequence: "
               "a row sees whole earlier blocks only, within its document where `document_mask` is on; 0: none",
       .min = 0,
       .max = largest_size});
  v.field(
      "window_final", c.window_final,
      {.help = "tokens of the window at the end of the run, a multiple of `window_block`. At a share x of the run it "
               "is 4x^3 - 6x^2 + 3x of that, rounded up to blocks",
       .min = 0,
       .max = largest_size,
       .default_text = "the sequence, rounded up"});
  v.field("long_window_blocks", c.long_window_blocks,
          {.help = "blocks of the model that have the whole window, counted from 0; the others have half of it",
           .min = 0,
           .max = most_blocks});
  v.field("init", c.init, {.help = "how matrices and tied tables are drawn"});
  v.field("init_gain", c.init_gain, {.help = "of `fan_in`", .min = 0, .above_min = true});
  v.field("embedding_init_std", c.embedding_init_std,
          {.help = "standard deviation of the initial token tables, where they are not the head too; 0: `init_std`",
           .min = 0,
           .default_text = "`init_std`"});
  v.field("zero_init_outputs", c.zero_init_outputs, {.help = "attention and MLP output matrices start as zero"});
  v.field("zero_init_head", c.zero_init_head, {.help = "an untied head starts as zero"});
  v.field("init_std", c.init_std,
          {.help = "standard deviation of the initial embeddings and matrices", .min = 0, .above_min = true});
  v.field("init_scale_residual", c.init_scale_residual,
          {.help = "attention and MLP output matrices start smaller, by 1/sqrt(2 layers)", .default_text = "preset"});
}

}  // namespace polaron

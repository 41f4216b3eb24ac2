// Every feature of the transformer in a small model: the cases that the tests of the model run over.
#pragma once

#include <cmath>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "support/tiny_model.h"

namespace polaron::test {

struct Feature {
  std::string name;
  TransformerConfig config;
  HostBatch batch;
};
inline void PrintTo(const Feature& feature, std::ostream* out) { *out << feature.name; }

// Starts of documents within sequences of `length`: document lengths follow `lengths` again and again.
inline std::vector<std::int32_t> packed_documents(std::int64_t sequences, std::int64_t length,
                                                  const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> start;
  std::size_t next = 0;
  for (std::int64_t b = 0; b < sequences; ++b) {
    for (std::int64_t t = 0; t < length;) {
      const std::int64_t end = std::min(length, t + lengths[next++ % lengths.size()]);
      for (const std::int64_t first = t; t < end; ++t) start.push_back(static_cast<std::int32_t>(first));
    }
  }
  return start;
}

// All parts of the authors' modded GPT-2 at once.
inline TransformerConfig tiny_modded_gpt2() {
  TransformerConfig c = tiny_llama();
  c.layers = 6;
  c.embedding_norm = c.x0_mixing = c.qk_norm = c.v_norm = true;
  c.attention_norm = c.norm_affine = false;
  c.value_embeddings = 2;
  c.skips = {{2, 4}, {0, 5}};
  c.attention_free_blocks = {3};
  c.mlp = MlpKind::relu2;
  c.attention_scale = 0.12;
  c.norm_eps = 1.19e-7;
  c.rotary_frequencies = RotaryFrequencies::half_truncated;
  c.logit_softcap = 15.0;
  c.logit_softcap_form = SoftcapForm::algebraic;
  c.head_vocabulary = c.vocabulary + 7;
  c.document_mask = true;
  return c;
}

inline std::vector<Feature> all_features() {
  std::vector<Feature> features;
  const auto add = [&](const std::string& name, const TransformerConfig& config, std::int64_t sequences = 2,
                       std::int64_t length = 11) {
    features.push_back({name, config, random_batch(sequences, length, config.vocabulary, features.size() + 1)});
  };
  const auto changed = [](TransformerConfig config, auto change) {
    change(config);
    return config;
  };
  const auto gpt2 = [&](auto change) { return changed(tiny_gpt2(), change); };
  const auto llama = [&](auto change) { return changed(tiny_llama(), change); };

  add("gpt2", tiny_gpt2());
  add("llama", tiny_llama());
  add("gelu_exact", gpt2([](auto& c) { c.mlp = MlpKind::gelu_exact; }));
  add("relu2", gpt2([](auto& c) { c.mlp = MlpKind::relu2; }));
  add("swiglu_with_biases", llama([](auto& c) { c.biases = true; }));
  add("learned_positions_without_biases", gpt2([](auto& c) { c.biases = false; }));
  add("untied_gpt2", gpt2([](auto& c) { c.tied_embeddings = false; }));
  add("tied_rotary", llama([](auto& c) { c.tied_embeddings = true; }));
  add("grouped_queries_4_to_1", llama([](auto& c) { c.kv_heads = 1; }));
  add("qk_norm", llama([](auto& c) { c.qk_norm = true; }));
  add("qk_norm_without_rotation", gpt2([](auto& c) { c.qk_norm = true; }));
  add("qk_norm_with_large_eps", llama([](auto& c) {
        c.qk_norm = true;
        c.norm_eps = 0.3;
      }));
  add("logit_softcap", llama([](auto& c) { c.logit_softcap = 1.5; }));
  add("attention_window", llama([](auto& c) { c.attention_window = 3; }));
  add("attention_window_of_1", gpt2([](auto& c) { c.attention_window = 1; }));
  add("attention_scale", llama([](auto& c) { c.attention_scale = 0.9; }));
  add("layernorm_without_gains", gpt2([](auto& c) { c.norm_affine = false; }));
  add("rmsnorm_without_gains", llama([](auto& c) { c.norm_affine = false; }));
  add("large_norm_eps", gpt2([](auto& c) { c.norm_eps = 0.3; }));
  add("heads_wider_than_the_model", llama([](auto& c) {
        c.head_size = 12;
        c.attention_scale = 1.0 / std::sqrt(12.0);
      }));
  add("odd_sizes", gpt2([](auto& c) {
        c.width = 35;
        c.heads = c.kv_heads = 5;
        c.head_size = 7;
        c.mlp_hidden = 33;
        c.vocabulary = 65;
      }));
  add("no_padding", gpt2([](auto& c) {
        c.mlp_hidden = 64;
        c.vocabulary = 128;
      }));
  add("one_head_one_layer", llama([](auto& c) {
        c.layers = 1;
        c.heads = c.kv_heads = 1;
        c.head_size = 32;
      }));
  add("sequences_of_one_token", tiny_llama(), 3, 1);
  add("sequences_of_one_token_with_position", tiny_gpt2(), 3, 1);

  const auto with_documents = [&](const std::string& name, TransformerConfig config,
                                  const std::vector<std::int64_t>& lengths) {
    config.document_mask = true;
    add(name, config, 2, 11);
    features.back().batch.document_start = packed_documents(2, 11, lengths);
  };
  with_documents("documents", tiny_llama(), {5, 1, 9, 1, 2});
  with_documents("documents_of_one_token", tiny_gpt2(), {1});
  with_documents("documents_and_window", llama([](auto& c) { c.attention_window = 4; }), {7, 3});

  add("rows_without_target", llama([](auto& c) { c.logit_softcap = 4.0; }));
  for (const std::size_t row : {0U, 3U, 10U, 21U}) features.back().batch.targets[row] = -1;

  add("everything_at_once", llama([](auto& c) {
        c.biases = c.qk_norm = c.document_mask = c.tied_embeddings = true;
        c.kv_heads = 1;
        c.logit_softcap = 3.0;
        c.attention_window = 5;
        c.norm = NormChoice::layernorm;
        c.rotary_base = 500.0;
      }));
  features.back().batch.document_start = packed_documents(2, 11, {4, 6, 1});

  // The parts of the authors' models, one by one and together.
  add("embedding_norm", llama([](auto& c) { c.embedding_norm = true; }));
  add("embedding_layernorm_and_positions", gpt2([](auto& c) { c.embedding_norm = true; }));
  add("attention_without_norm", llama([](auto& c) { c.attention_norm = false; }));
  add("v_norm", llama([](auto& c) { c.qk_norm = c.v_norm = true; }));
  add("value_embeddings", llama([](auto& c) { c.value_embeddings = 1; }));
  add("x0_mixing", gpt2([](auto& c) { c.x0_mixing = true; }));
  add("a_skip_over_two_blocks", llama([](auto& c) {
        c.layers = 4;
        c.skips = {{1, 3}};
      }));
  add("a_skip_to_the_next_block", gpt2([](auto& c) { c.skips = {{0, 1}}; }));
  add("a_block_without_attention", llama([](auto& c) { c.attention_free_blocks = {1}; }));
  add("a_first_block_without_attention", gpt2([](auto& c) { c.attention_free_blocks = {0}; }));
  add("half_truncated_rotary", llama([](auto& c) { c.rotary_frequencies = RotaryFrequencies::half_truncated; }));
  add("algebraic_softcap", llama([](auto& c) {
        c.logit_softcap = 1.5;
        c.logit_softcap_form = SoftcapForm::algebraic;
      }));
  add("head_with_more_entries_than_tokens", llama([](auto& c) { c.head_vocabulary = c.vocabulary + 30; }));
  add("two_windows", llama([](auto& c) {
        c.window_block = 4;
        c.window_final = 8;
        c.long_window_blocks = {1};
      }));
  features.back().batch.document_start = packed_documents(2, 11, {6, 5});
  features.back().batch.short_window = packed_documents(2, 11, {3, 3, 5});
  add("all_of_the_authors_gpt2", tiny_modded_gpt2());
  features.back().batch.document_start = packed_documents(2, 11, {4, 6, 1});
  add("the_authors_llama", llama([](auto& c) {
        c.layers = 5;
        c.norm = NormChoice::layernorm;
        c.norm_affine = false;
        c.value_embeddings = 2;
        c.skips = {{1, 3}, {0, 4}};
      }));
  return features;
}

}  // namespace polaron::test

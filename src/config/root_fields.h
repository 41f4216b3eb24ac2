// The field table of the whole config, with what docs/config.md says of each group. Part of fields.h, which is the
// header to include.
#pragma once

#include "config/fields.h"

namespace polaron {

template <class V>
void describe(V& v, OptimizerConfig& c) {
  v.optimizer_group(
      "matrices", c.matrices, OptimizerGroup::matrices,
      {.intro = "The linear layers of the blocks. Query, key and value weights, and gate and up weights, "
                "are separate matrices even where they are stored as one. Any type is allowed.",
       .example = R"({"optimizer": {"matrices": {"type": "low_rank_muon", "rank": "1/8", "lr": 0.02}}})"});
  v.optimizer_group("embeddings", c.embeddings, OptimizerGroup::embeddings,
                    {.intro = "The token table, also when it is the head too, and the position table."});
  v.optimizer_group("head", c.head, OptimizerGroup::head, {.intro = "The head, when it is not tied to the embedding."});
  v.optimizer_group("vectors", c.vectors, OptimizerGroup::vectors, {.intro = "Norm gains and shifts, and biases."});
  v.optimizer_group("scalars", c.scalars, OptimizerGroup::scalars,
                    {.intro = "Single numbers, in models that learn some. The gpt2 and llama presets have none."});
  v.overrides("overrides", c.overrides,
              {.intro = "A list of exceptions by parameter name. `pattern` is a glob (`*`, `?`, `[abc]`) for the whole "
                        "name; the first entry that matches counts, and its other keys, those of a group, are put over "
                        "the group's. With another `type` than the group's the entry starts from that type's "
                        "defaults. An entry that no parameter gets is refused.",
               .example = R"({"optimizer": {"overrides": [{"pattern": "*mlp*", "weight_decay": 0.02}]}})"});
}

template <class V>
void describe(V& v, Config& c) {
  v.field("name", c.name, {.help = "name of the run", .default_text = "the file's name without its ending"});
  v.field("output", c.output,
          {.help = "run directory: metrics, checkpoints and the effective config", .default_text = "`runs/<name>`"});
  v.field("seed", c.seed, {.help = "of the initial weights, the order of the data, sketches and samples", .min = 0});
  v.field("device", c.device, {.help = "what computes", .choices = device_choices});
  v.field(
      "precision", c.precision,
      {.help =
           "of matrix products and stored activations; master weights, gradients, statistics and sums stay fp32. "
           "bf16 needs hardware for its products (on a CPU: AMX) and is refused without; with it and with tf32, a CUDA "
           "device multiplies sketches and bases of low-rank optimizers in TF32",
       .choices = precision_choices});
  v.field("allow_slow_bf16", c.allow_slow_bf16,
          {.help = "computes in bf16 also where it is slower than fp32: for tests and comparisons"});
  v.field("threads", c.threads, {.help = "CPU threads; 0: one a core", .min = 0, .max = 4096});
  v.field(
      "deterministic", c.deterministic,
      {.help = "two runs of this config on one device have the same bits. Off: a GPU's GEMM algorithms are chosen by "
               "timing at the start, which may be faster, and may choose otherwise another time; the choices are "
               "kept in checkpoints and shared by all processes. On a CPU it changes nothing"});
  v.field("init_from", c.init_from,
          {.help = "checkpoint whose weights the run starts from, with a fresh optimizer; empty: random weights",
           .default_text = "empty"});
  v.group("data", c.data,
          {.intro = "Token shards, as the scripts in `data/` write them.",
           .example = R"({"data": {"train": "data/mine/train_*.bin", "validation": "data/mine/validation_*.bin"}})"});
  v.group("model", c.model,
          {.intro = "The shape of the transformer. `layers`, `width` and `heads` must be given; `preset` decides the "
                    "architecture, and any part of it may be changed.",
           .example = R"({"model": {"preset": "llama", "layers": 12, "width": 768, "heads": 12, "kv_heads": 4}})"});
  v.group("training", c.training,
          {.intro = "How long, and how much at a time. Give `steps` or `tokens`; when both are given they must agree.",
           .example = R"({"training": {"tokens": 1e9, "batch": 64, "micro_batch": 8, "sequence_length": 512}})"});
  v.group("schedule", c.schedule,
          {.intro = "The learning rate of every group is its `lr` times this.",
           .example = R"({"schedule": {"type": "wsd", "warmup_steps": 10, "decay_fraction": 0.4}})"});
  v.group("optimizer", c.optimizer,
          {.intro = "Each parameter has a role, and each role its settings. `matrices` may have any type; the other "
                    "roles `adamw` or `sgd`, since orthogonalizing is for matrices. A key that the type does not use "
                    "is refused rather than ignored."});
  v.group("validation", c.validation,
          {.intro = "Loss and perplexity on `data.validation`.",
           .example = R"({"validation": {"every": 100, "tokens": 1048576}})"});
  v.group("checkpoint", c.checkpoint,
          {.intro = "Checkpoints in the run directory. A last one is always written at the end.",
           .example = R"({"checkpoint": {"every": 500, "keep": 2}})"});
  v.group("sample", c.sample,
          {.intro = "Text that the model writes during the run, to watch it learn. Needs a vocabulary.",
           .example = R"({"sample": {"every": 200, "prompt": "The ", "tokens": 40, "temperature": 0.7}})"});
  v.group("parallel", c.parallel,
          {.intro = "Training with several processes (`mpirun -n N polaron train CONFIG`). Each takes an equal part of "
                    "the batch; optimizer state exists once, with the process that owns the parameter. Without mpirun "
                    "these keys change nothing.",
           .example = R"({"parallel": {"exchange": "factors"}})"});
  v.group(
      "quirks", c.quirks,
      {.intro = "What the public code of arXiv 2509.11983 does beside what its paper says, for reruns of that code. "
                "docs/paper.md says more of each. Leave them off otherwise.",
       .example = R"({"quirks": {"previous_batch_gradient": true}})"});
  v.group("diagnostics", c.diagnostics, {.intro = "What a run tells of itself beyond its metrics."});
}

}  // namespace polaron

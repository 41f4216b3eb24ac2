// The field table: every key of a config with its default, limits and description, written once. A visitor is led over
// it by describe(visitor, struct), and there is one visitor a purpose: reading JSON (read.cpp), writing it (read.cpp),
// and the reference and schema (catalogue.cpp). model_fields.h and optimizer_fields.h hold the two long tables.
//
// A visitor has
//   field(name, value&, Info)            for bool, int64, uint64, double, string, the enums, RankSpec and lists of
//   blocks group(name, struct&, GroupInfo)      for an object within the object optimizer_group(name, settings&,
//   OptimizerGroup, GroupInfo)  and  overrides(name, list&, GroupInfo)
// Info::applies is worked out from the struct as the visitor goes along, so a key that others depend on stands before
// them.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "config/config.h"

namespace polaron {

// One value of a string key that has a fixed set.
struct Choice {
  std::string_view name;
  std::string_view help;
};

// What is known of a key beside its type. Limits hold for numbers that are given; a struct's 0 may stand for "derive".
struct Info {
  std::string_view help = {};
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;                 // min itself is refused
  bool below_max = false;                 // max itself is refused
  std::string_view default_text = {};     // where the default is derived or the key must be given
  std::span<const Choice> choices = {};   // strings: the allowed ones; empty: any
  std::string_view word = {};             // integers: a string that may stand in a number's place, for -1
  bool applies = true;                    // with the values read so far, is the key used at all?
  std::string_view applies_to = {};       // ... what it is for
  std::string_view applies_instead = {};  // ... and why it is not; empty: because of the "type"
};

// Words for docs/config.md: an introduction, and an example that is a complete JSON object.
struct GroupInfo {
  std::string_view intro = {};
  std::string_view example = {};
};

inline constexpr double most_blocks = 10000;  // of a model

// The five members of OptimizerConfig.
enum class OptimizerGroup : std::uint8_t { matrices, embeddings, head, vectors, scalars };

// The kind a group has when its "type" is not given.
OptimizerKind default_kind(OptimizerGroup group);
// What a group holds before its own keys are read. The rate depends on the kind, and on the scale where it has one.
OptimizerSettings default_settings(OptimizerGroup group, OptimizerKind kind, ScaleKind scale = ScaleKind::original);
// Sets every field that the preset decides (not the sizes).
void apply_preset(TransformerConfig& model, ModelPreset preset);
// What a config holds before anything is read.
Config default_config();

inline constexpr double largest_size = 1 << 24;  // of a dimension of the model
inline constexpr double largest_count = 1e15;    // of steps and tokens

inline constexpr Choice device_choices[] = {
    {"auto", "a CUDA device when this build and machine have one, else the CPU"},
    {"cpu", "the CPU"},
    {"cuda", "a CUDA device; an error where there is none"},
};
inline constexpr Choice precision_choices[] = {
    {"auto", "bf16 on a CUDA device, fp32 on a CPU"},
    {"fp32", "32-bit floats throughout"},
    {"tf32", "32-bit floats, rounded to 10 bits after the point where they are multiplied: on a CUDA device"},
    {"bf16",
     "products of bf16 summed in fp32: on a CUDA device, on a CPU with AMX, and elsewhere, slowly, with "
     "`allow_slow_bf16`"},
};

template <class V>
void describe(V& v, DataConfig& c) {
  v.field("train", c.train,
          {.help = "glob of the training shards, for instance `data/fineweb/train_*.bin`", .default_text = "required"});
  v.field("validation", c.validation,
          {.help = "glob of the validation shards, none of which is trained on; empty: no validation",
           .default_text = "empty"});
  v.field("vocabulary", c.vocabulary,
          {.help = "the `vocabulary.json` that turns tokens into text; empty: the one beside the training shards, when "
                   "there is one",
           .default_text = "empty"});
  v.field("shuffle", c.shuffle,
          {.help = "visit the windows and shards in a random order, another one each epoch, given by `seed`; off: in "
                   "the order of the files"});
}

template <class V>
void describe(V& v, TrainingConfig& c) {
  v.field("steps", c.steps,
          {.help = "optimizer steps of the run",
           .min = 1,
           .max = largest_count,
           .default_text = "required, unless `tokens` is given"});
  v.field("tokens", c.tokens,
          {.help = "tokens to train on instead of `steps`, rounded up to whole steps of batch x sequence_length tokens",
           .min = 1,
           .max = largest_count,
           .default_text = "steps x batch x sequence_length"});
  v.field("sequence_length", c.sequence_length,
          {.help = "tokens in a training sequence; at most `model.context_length`",
           .min = 1,
           .max = largest_size,
           .default_text = "`model.context_length`"});
  v.field("batch", c.batch,
          {.help = "sequences in a global batch, that is in one optimizer step, whatever the number of processes",
           .min = 1,
           .max = largest_size,
           .default_text = "required"});
  v.field("micro_batch", c.micro_batch,
          {.help = "sequences a process handles at once: smaller means less memory and the same result up to rounding. "
                   "Divides `batch`. `\"auto\"`: the most of a process's part of the batch that fit into its memory",
           .min = 1,
           .max = largest_size,
           .default_text = "`batch`",
           .word = "auto"});
  v.field("gradient_clip", c.gradient_clip,
          {.help = "gradients are scaled down so that their global norm is at most this; 0: never", .min = 0});
  v.field("recompute", c.recompute, {.help = "what the backward pass computes again instead of keeping it"});
  v.field(
      "loss_chunk", c.loss_chunk,
      {.help = "rows of logits held at once; 0: equal chunks of up to about 128 MB", .min = 0, .max = largest_count});
  v.field("skip_loss_spikes", c.skip_loss_spikes,
          {.help = "skip a step whose loss lies more than this many standard deviations above the last 128 losses, for "
                   "which the host waits for every step on a GPU; 0: never",
           .min = 0});
}

template <class V>
void describe(V& v, ScheduleConfig& c) {
  v.field("type", c.kind, {.help = "how the learning rate goes on after the warm-up"});
  v.field("warmup_steps", c.warmup_steps,
          {.help = "steps over which the rate rises along a line from 0; fewer than the run's steps",
           .min = 0,
           .max = largest_count});
  v.field("final_fraction", c.final_fraction,
          {.help = "the rate of the last step, as a fraction of the peak rate",
           .min = 0,
           .max = 1,
           .applies = c.kind != ScheduleKind::constant && c.kind != ScheduleKind::trapezoid,
           .applies_to = "linear, cosine and wsd"});
  v.field("decay_fraction", c.decay_fraction,
          {.help = "the last part of the run, as a fraction of its steps, in which the rate falls along a line",
           .min = 0,
           .max = 1,
           .applies = c.kind == ScheduleKind::wsd || c.kind == ScheduleKind::trapezoid,
           .applies_to = "wsd and trapezoid"});
}

template <class V>
void describe(V& v, ValidationConfig& c) {
  v.field("every", c.every,
          {.help = "steps between two validations; 0: only at the end", .min = 0, .max = largest_count});
  v.field(
      "tokens", c.tokens,
      {.help =
           "targets to predict in one validation, the first so many, or all where there are fewer; 0: the whole split",
       .min = 0,
       .max = largest_count});
}

template <class V>
void describe(V& v, CheckpointConfig& c) {
  v.field("every", c.every,
          {.help = "steps between two checkpoints; 0: only at the end", .min = 0, .max = largest_count});
  v.field("keep", c.keep,
          {.help = "how many of the most recent checkpoints stay; 0: all", .min = 0, .max = largest_count});
}

template <class V>
void describe(V& v, SampleConfig& c) {
  v.field("every", c.every, {.help = "steps between two samples; 0: never", .min = 0, .max = largest_count});
  v.field("prompt", c.prompt,
          {.help = "text to go on from; empty: the token that separates documents", .default_text = "empty"});
  v.field("tokens", c.tokens, {.help = "tokens to generate", .min = 1, .max = largest_size});
  v.field(
      "temperature", c.temperature,
      {.help = "divides the logits: below 1 is more predictable, above 1 more varied", .min = 0, .above_min = true});
  v.field("top_k", c.top_k,
          {.help = "draw among this many most likely tokens; 0: among all; 1: always the most likely",
           .min = 0,
           .max = largest_size});
}

template <class V>
void describe(V& v, ParallelConfig& c) {
  v.field("exchange", c.exchange, {.help = "what the processes tell each other about low-rank updates"});
  v.field("check_every", c.check_every,
          {.help = "steps between comparisons of the processes' weights by checksum; 0: never",
           .min = 0,
           .max = largest_count});
}

template <class V>
void describe(V& v, QuirksConfig& c) {
  v.field(
      "previous_batch_gradient", c.previous_batch_gradient,
      {.help = "Q2: the gradient of a step is that of its batch plus that of the batch before, at the same weights; "
               "the first step has no batch before it"});
  v.field("previous_batch_dropped_every", c.previous_batch_dropped_every,
          {.help = "steps divisible by this leave the batch before out; 0: none does",
           .min = 0,
           .max = largest_count,
           .applies = c.previous_batch_gradient,
           .applies_to = "previous_batch_gradient",
           .applies_instead = "it is false here"});
  v.field(
      "shared_columns", c.shared_columns,
      {.help = "Q11: query, key, value and output matrix of a block draw their sketch from the same random numbers, "
               "so that they take the same columns; the MLP's matrices draw their own"});
}

template <class V>
void describe(V& v, SpectraConfig& c) {
  v.field("every", c.every,
          {.help = "steps between two looks; 0: never",
           .min = 0,
           .max = largest_count,
           .default_text = "`250` where `spectra` is given, else `0`"});
  v.field("matrices", c.matrices,
          {.help = "glob of the matrices' names, such as `*.attention.qkv.weight.v` or `blocks.0.*`; empty: those of "
                   "the middle block",
           .default_text = "empty"});
  v.field("ranks", c.ranks, {.help = "ranks whose captured share is computed", .min = 1, .max = largest_size});
}

template <class V>
void describe(V& v, DiagnosticsConfig& c) {
  v.group("spectra", c.spectra,
          {.intro = "Singular values of gradients and momenta, stable rank, and the share of the nuclear norm that a "
                    "random subspace captures: a line a matrix in `spectra.jsonl`, for `scripts/plot_spectra.py`.",
           .example = R"({"diagnostics": {"spectra": {"every": 100, "matrices": "*.attention.qkv.weight.v"}}})"});
}

}  // namespace polaron

#include "config/model_fields.h"
#include "config/optimizer_fields.h"
#include "config/root_fields.h"

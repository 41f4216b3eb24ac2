// The run configuration as typed structs, and how it is read. src/config is the only place that knows JSON names,
// defaults, limits and descriptions: one table (fields.h) drives parsing, the effective-config dump, docs/config.md and
// the JSON schema.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/transformer_config.h"

namespace polaron {

struct DataConfig {
  std::string train;       // glob of training shards
  std::string validation;  // glob of validation shards; empty: no validation
  std::string vocabulary;  // vocabulary.json; empty: beside the training shards, when there is one
  bool shuffle = true;
  bool operator==(const DataConfig&) const = default;
};

enum class Recompute : std::uint8_t { none, block };
enum class Exchange : std::uint8_t { parameters, factors, sketch };

inline constexpr std::int64_t kAutoMicroBatch = -1;

struct TrainingConfig {
  std::int64_t steps = 0;            // optimizer steps; or
  std::int64_t tokens = 0;           // tokens to train on, rounded up to whole steps. Exactly one of the two is given;
                                     // after validation both hold
  std::int64_t sequence_length = 0;  // T; default: the model's context_length
  std::int64_t batch = 0;            // sequences in a global batch (one optimizer step)
  std::int64_t micro_batch = 0;      // sequences a process handles at once; default: batch. kAutoMicroBatch: the most
                                     // that fit into memory
  double gradient_clip = 1.0;        // global norm; 0: none
  Recompute recompute = Recompute::none;
  std::int64_t loss_chunk = 0;  // rows of logits held at once; 0: equal chunks of up to about 128 MB
  double skip_loss_spikes =
      0;  // skip a step whose loss lies more than this many deviations above the last 128; 0: never
  bool operator==(const TrainingConfig&) const = default;
};

enum class ScheduleKind : std::uint8_t { constant, linear, cosine, wsd, trapezoid };

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::cosine;
  std::int64_t warmup_steps = 0;  // linear from 0
  double final_fraction = 0.1;    // of the peak rate, at the last step
  double decay_fraction = 0.3;    // wsd, trapezoid: the last part of the run, in which the rate falls
  bool operator==(const ScheduleConfig&) const = default;
};

enum class OptimizerKind : std::uint8_t { adamw, sgd, muon, low_rank_muon, msgd, low_rank_msgd };
enum class MomentumForm : std::uint8_t { ema, heavy };
enum class SketchKind : std::uint8_t { columns, columns_authors, gaussian, power };
enum class BasisKind : std::uint8_t { automatic, householder, cholesky_qr };
enum class ScaleKind : std::uint8_t { original, match_rms_adamw, none };
enum class RankCompensation : std::uint8_t { none, sqrt };
enum class Orthogonalizer : std::uint8_t { newton_schulz, exact };
enum class NewtonSchulzPrecision : std::uint8_t { automatic, fp32, bf16 };

// A rank as the user gives it: a number of directions ("rank": 64), or a fraction of the model's width ("rank": "1/8").
struct RankSpec {
  std::int64_t numerator = 1;
  std::int64_t denominator = 4;  // 1: `numerator` is the rank itself
  bool is_fraction() const { return denominator != 1; }
  bool operator==(const RankSpec&) const = default;
};

// Settings of one optimizer group. Every field exists for every kind; validation refuses those that the kind does not
// use.
struct OptimizerSettings {
  OptimizerKind kind = OptimizerKind::adamw;
  double lr = 3e-4;
  double weight_decay = 0.0;  // decoupled: w *= 1 - lr * weight_decay
  // adamw
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  bool bf16_weights = false;  // Q3
  bool bf16_moments = false;  // Q18
  // sgd, muon, low_rank_muon
  double momentum = 0.95;
  MomentumForm momentum_form = MomentumForm::ema;
  bool nesterov = true;
  double momentum_start = 0.85;            // momentum rises linearly from here ...
  std::int64_t momentum_warmup_steps = 0;  // ... over this many steps; 0: constant
  // muon, msgd and the low-rank ones
  Orthogonalizer orthogonalizer = Orthogonalizer::newton_schulz;
  std::string coefficients = "polar_express";  // newton_schulz_tables.h
  std::int64_t newton_schulz_steps = 0;        // 0: the table's own number
  NewtonSchulzPrecision newton_schulz_precision = NewtonSchulzPrecision::automatic;
  ScaleKind scale = ScaleKind::original;
  // low_rank_muon, low_rank_msgd
  RankSpec rank;
  SketchKind sketch = SketchKind::columns;
  std::int64_t power_iterations = 1;  // sketch "power": Gaussian start, then this many iterations
  BasisKind basis = BasisKind::automatic;
  RankCompensation rank_lr_compensation = RankCompensation::none;
  bool operator==(const OptimizerSettings&) const = default;
};

struct OptimizerConfig {
  OptimizerSettings matrices;    // the linear layers of the blocks
  OptimizerSettings embeddings;  // token (also when tied) and position tables
  OptimizerSettings head;        // an untied head
  OptimizerSettings vectors;     // norm gains and biases
  OptimizerSettings scalars;
  // JSON: "overrides": [{"pattern": ..., <keys of a group>}]. Kept as given, and resolved for a role on request.
  struct RawOverride {
    std::string pattern;
    std::string json;
    bool operator==(const RawOverride&) const = default;
  };
  std::vector<RawOverride> overrides;
  bool operator==(const OptimizerConfig&) const = default;
};

struct ValidationConfig {
  std::int64_t every = 0;   // steps; 0: only at the end
  std::int64_t tokens = 0;  // the first so many targets; 0: the whole split
  bool operator==(const ValidationConfig&) const = default;
};

struct CheckpointConfig {
  std::int64_t every = 0;  // steps; 0: only at the end
  std::int64_t keep = 3;   // most recent checkpoints kept; 0: all
  bool operator==(const CheckpointConfig&) const = default;
};

struct SampleConfig {
  std::int64_t every = 0;  // steps; 0: never
  std::string prompt;      // text; empty: the separator token
  std::int64_t tokens = 64;
  double temperature = 0.8;
  std::int64_t top_k = 40;  // 0: all
  bool operator==(const SampleConfig&) const = default;
};

struct ParallelConfig {
  Exchange exchange = Exchange::parameters;
  std::int64_t check_every = 100;  // steps between comparisons of the processes' weights; 0: never
  bool operator==(const ParallelConfig&) const = default;
};

// What the public code of arXiv 2509.11983 does beside what the paper says (docs/paper.md); for reruns of it only.
struct QuirksConfig {
  bool previous_batch_gradient = false;           // Q2
  std::int64_t previous_batch_dropped_every = 0;  // steps; 0: never
  bool shared_columns = false;                    // Q11
  bool operator==(const QuirksConfig&) const = default;
};

inline constexpr std::int64_t kSpectraEvery = 250;  // where the group is given

struct SpectraConfig {
  std::int64_t every = 0;  // steps; 0: never
  std::string matrices;    // glob of names; empty: those of the middle block
  std::vector<std::int64_t> ranks = {16, 64, 256};
  bool operator==(const SpectraConfig&) const = default;
};

struct DiagnosticsConfig {
  SpectraConfig spectra;
  bool operator==(const DiagnosticsConfig&) const = default;
};

struct Config {
  std::string name;    // of the run; default: the config file's stem
  std::string output;  // run directory; default runs/<name>
  std::uint64_t seed = 1337;
  std::string device = "auto";     // auto | cpu | cuda
  std::string precision = "auto";  // auto (only before a backend is chosen) | fp32 | tf32 | bf16
  bool allow_slow_bf16 = false;    // without hardware for it
  std::int64_t threads = 0;        // CPU threads; 0: one a core
  bool deterministic = true;       // two runs of one config on one device have the same bits
  std::string init_from;           // checkpoint whose weights start the run; empty: random
  DataConfig data;
  TransformerConfig model;
  TrainingConfig training;
  ScheduleConfig schedule;
  OptimizerConfig optimizer;
  ValidationConfig validation;
  CheckpointConfig checkpoint;
  SampleConfig sample;
  ParallelConfig parallel;
  DiagnosticsConfig diagnostics;
  QuirksConfig quirks;
  bool operator==(const Config&) const = default;
};

// Reads a config file: // comments allowed, "extends": "other.json" (relative to the file) merged under it, then
// `overrides` ("key.path=value", value as JSON or a bare string) put over it, then validation and resolution.
// Throws Error(Exit::usage) naming the file, the JSON pointer and, for an unknown key, the nearest valid one.
Config load_config(const std::filesystem::path& path, std::span<const std::string> overrides = {});
// The same from text; `origin` stands for the file name in messages.
Config parse_config(std::string_view text, const std::string& origin, std::span<const std::string> overrides = {});

// The effective configuration as JSON: complete, and read back by parse_config to the same Config.
std::string to_json(const Config& config);

// A model's settings as JSON, and back. parse_model takes values as they are and derives nothing; a key that is missing
// keeps its default, an unknown one is an Error(Exit::usage).
std::string model_to_json(const TransformerConfig& model);
TransformerConfig parse_model(std::string_view text, const std::string& origin);

// The override that counts for a parameter: the first whose pattern matches `name`, as an index; nullopt: none does.
std::optional<std::size_t> override_for(const OptimizerConfig& optimizer, std::string_view name);
// The settings of a parameter: its role's group, with override_for(name) put over it.
// `group` is one of OptimizerConfig's five members.
OptimizerSettings settings_for(const OptimizerConfig& optimizer, const OptimizerSettings& group, std::string_view name);

// docs/config.md and configs/polaron.schema.json, generated from the field table.
std::string config_reference_markdown();
std::string config_json_schema();

}  // namespace polaron

#include "config/resolve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "config/documents.h"
#include "config/fields.h"

namespace polaron {
namespace {

class Resolver {
 public:
  Resolver(Config& config, const std::string& origin) : c_(config), origin_(origin) {}

  void run() {
    names();
    model();
    lengths();
    batches();
    sizes();
    duration();
    schedule();
    if (c_.validation.every > 0 && c_.data.validation.empty()) {
      fail("/validation/every", "given, but there is no data to validate on; give data.validation too");
    }
  }

 private:
  [[noreturn]] void fail(const std::string& pointer, const std::string& text) const { refuse(origin_, pointer, text); }

  void required(bool given, const std::string& pointer, const std::string& what) const {
    if (!given) fail(pointer, "missing; give " + what);
  }

  void names() {
    if (c_.name.empty()) c_.name = std::filesystem::path(origin_).stem().string();
    const auto bad = [](char letter) { return letter == '/' || static_cast<unsigned char>(letter) < 32; };
    if (c_.name.empty() || c_.name == "." || c_.name == ".." || std::any_of(c_.name.begin(), c_.name.end(), bad)) {
      fail("/name", "the name of a run must do as a folder's name: not empty, without \"/\" and control characters");
    }
    if (c_.output.empty()) c_.output = "runs/" + c_.name;
    required(!c_.data.train.empty(), "/data/train", "the glob of the training shards");
  }

  void model() {
    TransformerConfig& m = c_.model;
    required(m.layers > 0, "/model/layers", "the number of transformer blocks");
    required(m.width > 0, "/model/width", "the size of the residual stream");
    required(m.heads > 0, "/model/heads", "the number of attention heads");
    if (m.head_size == 0) {
      if (m.width % m.heads != 0) {
        fail("/model/width",
             fmt::format("{} is not divisible by {} heads; change one of them, or give head_size", m.width, m.heads));
      }
      m.head_size = m.width / m.heads;
    }
    if (m.kv_heads == 0) m.kv_heads = m.heads;
    if (m.heads % m.kv_heads != 0) {
      fail("/model/kv_heads", fmt::format("{} does not divide {} heads", m.kv_heads, m.heads));
    }
    if (m.positions == Positions::rotary && m.head_size % 2 != 0) {
      fail("/model/head_size",
           fmt::format("{} is odd, but rotary positions rotate pairs; give an even head_size", m.head_size));
    }
    if (m.mlp_hidden == 0) {
      m.mlp_hidden = m.mlp == MlpKind::swiglu ? (8 * m.width + 191) / 192 * 64 : 4 * m.width;
    }
    if (m.attention_scale == 0) m.attention_scale = 1.0 / std::sqrt(static_cast<double>(m.head_size));
    if (m.embedding_init_std == 0) m.embedding_init_std = m.init_std;
    if (m.head_vocabulary > 0 && m.tied_embeddings) {
      fail("/model/head_vocabulary", "is for a head of its own, and tied_embeddings is true");
    }
    if (m.head_vocabulary > 0 && m.head_vocabulary < m.vocabulary) {
      fail("/model/head_vocabulary",
           fmt::format("{} is less than the {} of vocabulary", m.head_vocabulary, m.vocabulary));
    }
    if (m.v_norm && !m.qk_norm) fail("/model/v_norm", "needs qk_norm");
    if (m.rotary_frequencies == RotaryFrequencies::half_truncated && m.head_size % 4 != 0) {
      fail("/model/rotary_frequencies",
           fmt::format("half_truncated needs a head_size divisible by 4, not {}", m.head_size));
    }
    idle();
    blocks();
  }

  // What would change nothing was meant to. An effective config has all keys: those at their defaults pass.
  void idle() const {
    const TransformerConfig& m = c_.model;
    const TransformerConfig defaults;
    if (m.positions != Positions::rotary) {
      if (m.rotary_base != defaults.rotary_base) fail("/model/rotary_base", "is for positions \"rotary\"");
      if (m.rotary_frequencies != defaults.rotary_frequencies) {
        fail("/model/rotary_frequencies", "is for positions \"rotary\"");
      }
    }
    if (m.init != InitForm::fan_in && m.init_gain != defaults.init_gain) {
      fail("/model/init_gain", "is for init \"fan_in\"");
    }
    if (m.zero_init_head && m.tied_embeddings) {
      fail("/model/zero_init_head", "is for a head of its own, and tied_embeddings is true");
    }
    if (m.window_block == 0 && !m.long_window_blocks.empty()) {
      fail("/model/long_window_blocks", "needs window_block, the unit in which windows grow");
    }
  }

  void block_exists(std::int64_t block, const std::string& key) const {
    if (block >= c_.model.layers) {
      fail("/model/" + key,
           fmt::format("there is no block {}: the model has blocks 0 to {}", block, c_.model.layers - 1));
    }
  }

  void blocks() const {
    const TransformerConfig& m = c_.model;
    if (2 * m.value_embeddings > m.layers) {
      fail("/model/value_embeddings",
           fmt::format("{} tables for the first and the last {} blocks, but the model has {} blocks",
                       m.value_embeddings, m.value_embeddings, m.layers));
    }
    for (const std::int64_t block : m.attention_free_blocks) {
      block_exists(block, "attention_free_blocks");
      if (block < m.value_embeddings || block >= m.layers - m.value_embeddings) {
        fail("/model/attention_free_blocks",
             fmt::format("block {} has a value embedding, so it needs attention", block));
      }
    }
    for (const std::int64_t block : m.long_window_blocks) block_exists(block, "long_window_blocks");
    for (std::size_t i = 0; i < m.skips.size(); ++i) {
      const auto [from, to] = m.skips[i];
      block_exists(to, "skips");
      if (from >= to) fail("/model/skips", fmt::format("a skip goes to a later block, not from {} to {}", from, to));
      for (std::size_t j = 0; j < i; ++j) {
        if (m.skips[j].from == from || m.skips[j].to == to) {
          fail("/model/skips", fmt::format("[{}, {}] and [{}, {}] share a block; one skip from and one to a block",
                                           m.skips[j].from, m.skips[j].to, from, to));
        }
      }
    }
  }

  void lengths() {
    std::int64_t& context = c_.model.context_length;
    std::int64_t& sequence = c_.training.sequence_length;
    required(context > 0 || sequence > 0, "/model/context_length", "it or training.sequence_length");
    if (context == 0) context = sequence;
    if (sequence == 0) sequence = context;
    if (sequence > context) {
      fail("/training/sequence_length",
           fmt::format("{} is more than the {} of model.context_length", sequence, context));
    }
    TransformerConfig& m = c_.model;
    if (m.window_block == 0) {
      if (m.window_final > 0) fail("/model/window_final", "needs window_block, the unit in which windows grow");
      return;
    }
    if (sequence % m.window_block != 0) {
      fail("/model/window_block", fmt::format("{} does not divide sequences of {}", m.window_block, sequence));
    }
    if (m.window_final == 0) m.window_final = sequence;
    if (m.window_final % m.window_block != 0) {
      fail("/model/window_final", fmt::format("{} is no multiple of window_block {}", m.window_final, m.window_block));
    }
  }

  void batches() {
    TrainingConfig& t = c_.training;
    required(t.batch > 0, "/training/batch", "the number of sequences in an optimizer step");
    if (t.micro_batch == 0) t.micro_batch = t.batch;
    if (t.micro_batch != kAutoMicroBatch && t.batch % t.micro_batch != 0) {
      fail("/training/micro_batch", fmt::format("{} does not divide batch {}", t.micro_batch, t.batch));
    }
  }

  // What keeps counts of parameters and bytes within int64, with room for padding, copies and sums over processes. Far
  // beyond any machine, so that an estimate will do.
  void sizes() const {
    constexpr double most_parameters = 1e13, most_activations = 1e17;
    const TransformerConfig& m = c_.model;
    const auto layers = static_cast<double>(m.layers), width = static_cast<double>(m.width);
    const auto hidden = static_cast<double>(m.mlp_hidden), vocabulary = static_cast<double>(m.softmax_size());
    const double queries = static_cast<double>(m.heads) * static_cast<double>(m.head_size);
    const double keys = static_cast<double>(m.kv_heads) * static_cast<double>(m.head_size);
    const double tables = 2 * vocabulary * width + static_cast<double>(m.context_length) * width +
                          static_cast<double>(m.value_embeddings) * vocabulary * keys;
    const double parameters = tables + layers * width * (2 * queries + 2 * keys + 3 * hidden);
    if (parameters > most_parameters) {
      fail("/model",
           fmt::format("these sizes make about {:.1e} parameters, more than {:.0e}", parameters, most_parameters));
    }
    const TrainingConfig& t = c_.training;
    const std::int64_t sequences = t.micro_batch == kAutoMicroBatch ? t.batch : t.micro_batch;
    const auto tokens = static_cast<double>(sequences * t.sequence_length);  // both at most 2^24
    const double logits = std::min(static_cast<double>(t.loss_chunk), tokens) * vocabulary;
    const double activations = tokens * layers * (8 * width + 3 * queries + 6 * keys + 4 * hidden + 256) + logits;
    if (activations > most_activations) {
      fail("/training/micro_batch",
           fmt::format("{} sequences of {} tokens make about {:.1e} activations, more than {:.0e}; give less at once",
                       sequences, t.sequence_length, activations, most_activations));
    }
  }

  void duration() {
    TrainingConfig& t = c_.training;
    required(t.steps > 0 || t.tokens > 0, "/training/steps", "it or tokens");
    const std::int64_t per_step = t.batch * t.sequence_length;  // both at most 2^24
    const std::int64_t steps = t.tokens > 0 ? (t.tokens - 1) / per_step + 1 : t.steps;
    if (t.steps > 0 && t.steps != steps) {
      fail("/training/tokens", fmt::format("{} tokens are {} steps of {} x {}, but steps is {}; give one of the two",
                                           t.tokens, steps, t.batch, t.sequence_length, t.steps));
    }
    t.steps = steps;
    if (__builtin_mul_overflow(steps, per_step, &t.tokens) || static_cast<double>(t.tokens) > largest_count) {
      fail("/training/steps", fmt::format("{} steps of {} x {} are more than {:.0e} tokens", steps, t.batch,
                                          t.sequence_length, largest_count));
    }
  }

  void schedule() const {
    const ScheduleConfig& s = c_.schedule;
    const std::int64_t steps = c_.training.steps;
    if (s.warmup_steps > 0 && s.warmup_steps >= steps) {
      fail("/schedule/warmup_steps", fmt::format("{} is not less than the run's {} steps", s.warmup_steps, steps));
    }
    const double stable_end = (1.0 - s.decay_fraction) * static_cast<double>(steps);
    const bool decays = s.kind == ScheduleKind::wsd || s.kind == ScheduleKind::trapezoid;
    if (decays && static_cast<double>(s.warmup_steps) > stable_end + 0.5) {
      fail("/schedule/decay_fraction", fmt::format("{} of {} steps begins before the warm-up of {} steps ends",
                                                   s.decay_fraction, steps, s.warmup_steps));
    }
  }

  Config& c_;
  const std::string& origin_;
};

}  // namespace

void resolve(Config& config, const std::string& origin) { Resolver(config, origin).run(); }

}  // namespace polaron

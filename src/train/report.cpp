#include "train/report.h"

#include <fmt/format.h>

#include <fstream>

namespace polaron {
namespace {

const char* name_of(MlpKind kind) {
  switch (kind) {
    case MlpKind::gelu:
      return "GELU (tanh)";
    case MlpKind::gelu_exact:
      return "GELU (exact)";
    case MlpKind::swiglu:
      return "SwiGLU";
    case MlpKind::relu2:
      return "ReLU^2";
  }
  return "?";
}

std::string shape_text(const TransformerConfig& m) {
  std::string text =
      fmt::format("{}, {} layers, width {}, {} heads of {}", m.preset == ModelPreset::gpt2 ? "GPT-2" : "LLaMA",
                  m.layers, m.width, m.heads, m.head_size);
  if (m.kv_heads != m.heads) text += fmt::format(" ({} for keys and values)", m.kv_heads);
  return text + fmt::format(", MLP {} {}", m.mlp_hidden, name_of(m.mlp));
}

}  // namespace

Table model_table(const Config& config, const ParameterTable& table, const FlopsPerToken& flops) {
  const TransformerConfig& m = config.model;
  const TrainingConfig& t = config.training;
  Table result;
  result.title = "model";
  result.rows = {
      {"shape", shape_text(m)},
      {"vocabulary",
       fmt::format("{} tokens, embeddings {}", format_grouped(m.vocabulary), m.tied_embeddings ? "tied" : "untied")},
      {"context", fmt::format("{} tokens, positions {}", m.context_length,
                              m.positions == Positions::learned ? "learned" : "rotary")},
      {"parameters", fmt::format("{} ({} in matrices)", format_grouped(table.elements()),
                                 format_grouped(table.elements(Role::matrix)))},
      {"FLOPs a token", fmt::format("{:.3g} (6N + 6LCT)", flops.total())},
      {"batch", fmt::format("{} x {} tokens, micro-batch {}", t.batch, t.sequence_length, t.micro_batch)},
      {"run", fmt::format("{} steps, {} tokens", format_grouped(t.steps), format_grouped(t.tokens))},
  };
  return result;
}

Table memory_table(const MemoryPlan& memory) {
  Table result;
  result.title = "memory";
  const auto row = [](const char* what, std::int64_t bytes) {
    return std::vector<std::string>{what, format_bytes(bytes)};
  };
  result.rows = {row("weights", memory.weights),
                 row("gradients", memory.gradients),
                 row("optimizer state", memory.optimizer_state),
                 row("optimizer scratch", memory.optimizer_scratch),
                 row("activations", memory.activations),
                 row("token batches", memory.batches)};
  if (memory.ops > 0) result.rows.push_back(row("kept by ops", memory.ops));
  result.rows.push_back({});
  result.rows.push_back(row("in all", memory.total()));
  return result;
}

Table optimizer_table(const Assignment& assignment, const ParameterTable& table) {
  Table result;
  result.title = "optimizers";
  result.headers = {"parameters", "tensors", "elements", "optimizer"};
  for (const AssignmentRow& row : describe(assignment, table)) {
    result.rows.push_back({row.parameters, format_grouped(row.tensors), format_grouped(row.elements), row.optimizer});
  }
  return result;
}

std::string full_rank_note(const Assignment& assignment) {
  if (assignment.full_rank.empty()) return {};
  return fmt::format(
      "{} matrices (first: {}) have a side that is not longer than the rank: they are orthogonalized fully.",
      assignment.full_rank.size(), assignment.full_rank.front());
}

std::string idle_groups_note(const Assignment& assignment) {
  std::string names;
  for (const std::string& group : assignment.idle_groups)
    names += (names.empty() ? "optimizer." : ", optimizer.") + group;
  if (names.empty()) return {};
  return fmt::format("{} changes nothing: the model has no such parameter (a tied head is among the embeddings).",
                     names);
}

std::int64_t resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8)) * 1024;
  }
  return 0;
}

}  // namespace polaron

#include "optim/assignment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "base/error.h"
#include "config/enum_names.h"
#include "config/fields.h"

namespace polaron {

std::int64_t resolve_rank(const RankSpec& rank, std::int64_t width) {
  const double value = static_cast<double>(rank.numerator) / static_cast<double>(rank.denominator);
  const auto resolved = rank.is_fraction() ? std::llround(value * static_cast<double>(width)) : rank.numerator;
  return std::max<std::int64_t>(1, resolved);
}

double step_scale(ScaleKind kind, std::int64_t rows, std::int64_t cols) {
  const auto m = static_cast<double>(rows);
  const auto n = static_cast<double>(cols);
  switch (kind) {
    case ScaleKind::original:
      return std::sqrt(std::max(1.0, m / n));
    case ScaleKind::match_rms_adamw:
      return 0.2 * std::sqrt(std::max(m, n));
    case ScaleKind::none:
      return 1.0;
  }
  return 1.0;
}

namespace {

bool is_elementwise(OptimizerKind kind) { return kind == OptimizerKind::adamw || kind == OptimizerKind::sgd; }

const OptimizerSettings& group_of(const OptimizerConfig& config, Role role) {
  switch (role) {
    case Role::matrix:
      return config.matrices;
    case Role::embedding:
      return config.embeddings;
    case Role::head:
      return config.head;
    case Role::vector:
      return config.vectors;
    case Role::scalar:
      return config.scalars;
  }
  throw std::logic_error("unknown role");
}

std::vector<std::string> idle_groups(const OptimizerConfig& config, const ParameterTable& table) {
  // Not vectors, which configs for several architectures give; matrices and embeddings are in every model.
  const std::pair<Role, const char*> groups[] = {{Role::head, "head"}, {Role::scalar, "scalars"}};
  const OptimizerConfig defaults = default_config().optimizer;
  std::vector<std::string> idle;
  for (const auto& [role, name] : groups) {
    if (table.elements(role) == 0 && group_of(config, role) != group_of(defaults, role)) idle.emplace_back(name);
  }
  return idle;
}

// The names of all parameters, once for all blocks: "blocks.*.mlp.up.weight".
std::string names_in_short(const ParameterTable& table) {
  std::string list;
  for (const Parameter& p : table.all()) {
    const std::string of_block = fmt::format("blocks.{}.", p.layer);
    const bool in_block = p.name.starts_with(of_block);
    const std::string name = in_block ? "blocks.*." + p.name.substr(of_block.size()) : p.name;
    if ((", " + list + ", ").find(", " + name + ", ") != std::string::npos) continue;
    list += (list.empty() ? "" : ", ") + name;
  }
  return list;
}

void check_overrides(const OptimizerConfig& config, const ParameterTable& table) {
  std::vector<bool> used(config.overrides.size(), false);
  for (const Parameter& p : table.all()) {
    if (const auto index = override_for(config, p.name)) used[*index] = true;
  }
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    OptimizerConfig alone;
    alone.overrides = {config.overrides[i]};
    const auto first = std::find_if(table.all().begin(), table.all().end(),
                                    [&](const Parameter& p) { return override_for(alone, p.name).has_value(); });
    const std::string& pattern = config.overrides[i].pattern;
    if (first == table.all().end()) {
      throw Error(Exit::usage,
                  fmt::format("optimizer.overrides.{}: no parameter is named like \"{}\". The names are {}.", i,
                              pattern, names_in_short(table)));
    }
    const std::size_t taken_by = *override_for(config, first->name);
    throw Error(
        Exit::usage,
        fmt::format("optimizer.overrides.{}: every parameter named like \"{}\" gets an earlier entry, the first "
                    "that matches: {} that of {}, \"{}\". Put the narrower pattern first.",
                    i, pattern, first->name, taken_by, config.overrides[taken_by].pattern));
  }
}

}  // namespace

Assignment assign_optimizers(const OptimizerConfig& config, const TransformerConfig& model, const ParameterTable& table,
                             DType precision) {
  check_overrides(config, table);
  Assignment result;
  result.idle_groups = idle_groups(config, table);
  for (std::size_t i = 0; i < table.size(); ++i) {
    const Parameter& p = table[i];
    OptimizerSettings settings = settings_for(config, group_of(config, p.role), p.name);
    if (settings.newton_schulz_precision == NewtonSchulzPrecision::automatic) {
      settings.newton_schulz_precision =
          precision == DType::bf16 ? NewtonSchulzPrecision::bf16 : NewtonSchulzPrecision::fp32;
    }
    if (is_elementwise(settings.kind)) {
      result.elementwise.push_back({i, settings});
      continue;
    }
    for (std::size_t b = 0; b < p.blocks.size(); ++b) {
      MatrixItem item;
      item.parameter = i;
      item.block = b;
      item.rows = p.blocks[b].rows;
      item.cols = p.cols;
      item.label = p.blocks[b].name.empty() ? p.name : fmt::format("{}[{}]", p.name, p.blocks[b].name);
      const std::int64_t shorter = std::min(item.rows, item.cols);
      const std::int64_t longer = std::max(item.rows, item.cols);
      std::int64_t rank = is_low_rank(settings.kind) ? resolve_rank(settings.rank, model.width) : 0;
      if (rank >= shorter) {
        rank = 0;
        result.full_rank.push_back(item.label);
      }
      double scale = step_scale(settings.scale, item.rows, item.cols);
      if (rank > 0 && settings.rank_lr_compensation == RankCompensation::sqrt) {
        scale *= std::sqrt(static_cast<double>(shorter) / static_cast<double>(rank));
      }
      item.scale = static_cast<float>(scale);
      // The authors' sketch is another one for tall matrices.
      const bool apart = settings.sketch == SketchKind::columns_authors;
      const auto same = std::find_if(result.classes.begin(), result.classes.end(), [&](const MatrixClass& c) {
        const MatrixItem& first = c.items.front();
        return c.rows == shorter && c.cols == longer && c.rank == rank && c.settings == settings &&
               !(apart && (first.rows > first.cols) != (item.rows > item.cols));
      });
      if (same != result.classes.end()) {
        same->items.push_back(std::move(item));
      } else {
        result.classes.push_back({settings, shorter, longer, rank, {std::move(item)}});
      }
    }
  }
  return result;
}

namespace {

std::string settings_text(const OptimizerSettings& s, std::int64_t rank) {
  std::string text = fmt::format("{}", name_of(s.kind));
  if (rank > 0) {
    text += fmt::format(", rank {} ({})", rank, name_of(s.sketch));
  }
  text += fmt::format(", lr {:g}", s.lr);
  if (s.weight_decay > 0) text += fmt::format(", decay {:g}", s.weight_decay);
  if (s.kind == OptimizerKind::adamw) text += fmt::format(", betas {:g}/{:g}", s.beta1, s.beta2);
  const bool momentum =
      s.kind == OptimizerKind::muon || s.kind == OptimizerKind::low_rank_muon || s.kind == OptimizerKind::sgd;
  if (momentum) text += fmt::format(", momentum {:g}{}", s.momentum, s.nesterov ? " nesterov" : "");
  return text;
}

}  // namespace

std::vector<AssignmentRow> describe(const Assignment& assignment, const ParameterTable& table) {
  std::vector<AssignmentRow> rows;
  for (const MatrixClass& c : assignment.classes) {
    AssignmentRow row;
    row.parameters = fmt::format("matrix {} x {}", c.rows, c.cols);
    row.tensors = static_cast<std::int64_t>(c.items.size());
    row.elements = row.tensors * c.rows * c.cols;
    row.optimizer = settings_text(c.settings, c.rank);
    rows.push_back(std::move(row));
  }
  for (const ElementwiseItem& item : assignment.elementwise) {
    const Parameter& p = table[item.parameter];
    const std::string parameters = name_of(p.role);
    const std::string optimizer = settings_text(item.settings, 0);
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const AssignmentRow& row) {
      return row.parameters == parameters && row.optimizer == optimizer;
    });
    AssignmentRow& row = same != rows.end() ? *same : rows.emplace_back(AssignmentRow{parameters, 0, 0, optimizer});
    row.tensors += 1;
    row.elements += p.elements();
  }
  return rows;
}

}  // namespace polaron

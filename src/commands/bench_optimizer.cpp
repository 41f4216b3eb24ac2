// `polaron bench optimizer`: one step of the matrix optimizers over all matrices of a model, momentum and update
// included.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands/bench_model.h"
#include "optim/optimizer.h"
#include "train/console.h"
#include "train/profile.h"

namespace polaron {
namespace {

struct Method {
  const char* name;
  OptimizerKind kind;
  SketchKind sketch;
};
constexpr Method kMethods[] = {{"muon", OptimizerKind::muon, SketchKind::columns},
                               {"low_rank_muon, columns", OptimizerKind::low_rank_muon, SketchKind::columns},
                               {"low_rank_muon, gaussian", OptimizerKind::low_rank_muon, SketchKind::gaussian},
                               {"low_rank_muon, power", OptimizerKind::low_rank_muon, SketchKind::power},
                               {"msgd", OptimizerKind::msgd, SketchKind::columns},
                               {"low_rank_msgd, columns", OptimizerKind::low_rank_msgd, SketchKind::columns},
                               {"adamw (matrices)", OptimizerKind::adamw, SketchKind::columns}};

// Only the matrices: everything else is left out of the assignment.
Assignment matrices_only(const Config& config, const ParameterTable& table) {
  Assignment assignment = assign_optimizers(config.optimizer, config.model, table, compute_type(config));
  std::erase_if(assignment.elementwise,
                [&](const ElementwiseItem& item) { return table[item.parameter].role != Role::matrix; });
  return assignment;
}

}  // namespace

Exit run_bench_optimizer(const BenchCommand& command) {
  BenchModel bench(load_bench_config(command));
  Console console;
  const std::int64_t elements = bench.table.elements(Role::matrix);
  const std::int64_t rank = resolve_rank(bench.config.optimizer.matrices.rank, bench.config.model.width);
  console.line(fmt::format("{}   {} in matrices, rank {}, {} steps each", bench.chosen.why, format_grouped(elements),
                           rank, command.repeats));
  nlohmann::json results = nlohmann::json::array();
  Table table;
  table.title = "one step over all matrices, momentum and update included";
  table.headers = {"method", "ms", "times muon", "ns an element", "its largest parts, ms"};
  double muon_ms = 0;
  for (const Method& method : kMethods) {
    Config config = bench.config;
    config.optimizer.matrices.kind = method.kind;
    config.optimizer.matrices.sketch = method.sketch;
    Optimizer optimizer(matrices_only(config, bench.table), bench.table, bench.backend, *bench.communicator,
                        Exchange::parameters, 1, bench.buffers());
    const double ms = median_ms(command.repeats, [&](std::int64_t i) {
      optimizer.step(*bench.stream, i, 1.0, {});
      bench.stream->synchronize();
    });
    Profile profile;
    const auto profiling = make_profiling_backend(bench.backend, profile);
    Optimizer profiled(matrices_only(config, bench.table), bench.table, *profiling, *bench.communicator,
                       Exchange::parameters, 1, bench.buffers());
    profiled.step(*bench.stream, 0, 1.0, {});
    profile.clear();
    profiled.step(*bench.stream, 1, 1.0, {});
    std::vector<std::pair<double, std::string>> parts;
    nlohmann::json parts_json;
    for (const auto& [name, op] : profile) {
      parts.emplace_back(op.seconds * 1e3, name);
      parts_json[name] = op.seconds * 1e3;
    }
    std::sort(parts.rbegin(), parts.rend());
    std::string text;
    for (std::size_t i = 0; i < std::min<std::size_t>(3, parts.size()); ++i) {
      text += fmt::format("{}{} {:.1f}", i > 0 ? ", " : "", parts[i].second, parts[i].first);
    }
    if (method.kind == OptimizerKind::muon) muon_ms = ms;
    table.rows.push_back({method.name, fmt::format("{:.1f}", ms), fmt::format("{:.2f}", muon_ms / ms),
                          fmt::format("{:.2f}", ms * 1e6 / static_cast<double>(elements)), text});
    results.push_back({{"method", method.name}, {"ms", ms}, {"times_muon", muon_ms / ms}, {"parts_ms", parts_json}});
  }
  console.table(table);
  write_results(command,
                nlohmann::json{{"config", bench.config.name}, {"rank", rank}, {"methods", results}}.dump(2) + "\n");
  return Exit::done;
}

}  // namespace polaron

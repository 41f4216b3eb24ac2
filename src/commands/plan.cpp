#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "commands/commands.h"
#include "config/enum_names.h"
#include "data/shard.h"
#include "io/atomic.h"
#include "train/backend_factory.h"
#include "train/memory_fit.h"
#include "train/processes.h"
#include "train/report.h"
#include "train/session.h"

namespace polaron {

namespace {

constexpr std::int64_t kBytesVocabulary = 257;  // 256 bytes and a separator, as data/prepare_text.py makes it

bool any_file_matches(const std::string& pattern) {
  try {
    return !expand_pattern(pattern).empty();
  } catch (const Error&) {
    return false;
  }
}

// All in bytes, of one process.
nlohmann::ordered_json to_json(const MemoryPlan& memory) {
  return {{"weights", memory.weights},
          {"gradients", memory.gradients},
          {"optimizer_state", memory.optimizer_state},
          {"optimizer_scratch", memory.optimizer_scratch},
          {"activations", memory.activations},
          {"batches", memory.batches},
          {"ops", memory.ops},
          {"total", memory.total()}};
}

// All in bytes a step, of all processes together: "total" is what metrics.jsonl calls moved_a_step.
nlohmann::ordered_json to_json(const TrafficPlan& traffic) {
  return {{"gradients", traffic.gradients},
          {"parameters", traffic.parameters},
          {"factors", traffic.factors},
          {"sketches", traffic.sketches},
          {"total", traffic.total()}};
}

}  // namespace

Exit run_plan(const PlanCommand& command) {
  Config config = load_config(command.config, command.overrides);
  std::string assumed;
  if (config.model.vocabulary == 0) {
    // A plan is also of use before there is any data.
    if (config.data.vocabulary.empty() && !any_file_matches(config.data.train)) {
      config.model.vocabulary = kBytesVocabulary;
      assumed = fmt::format(
          "There is no file '{}' yet: planned with a vocabulary of {} (bytes). Give the size of yours "
          "by --set model.vocabulary=N.",
          config.data.train, kBytesVocabulary);
    } else {
      resolve_vocabulary(config, find_vocabulary(config.data));
    }
  }
  config.training.micro_batch = micro_batch_of(config.training, command.processes);  // as a run has it
  const ParameterTable table(config.model);
  const ChosenBackend chosen = make_backend(config.device, static_cast<int>(config.threads));
  settle_precision(config, *chosen.backend);
  const Assignment assignment = assign_optimizers(config.optimizer, config.model, table, compute_type(config));
  if (command.processes > 1) check_processes(config, assignment, command.processes);

  const Ownership ownership(assignment, table, command.processes, config.parallel.exchange);
  std::string fitted;
  if (config.training.micro_batch == kAutoMicroBatch) {
    const std::int64_t free = free_memory(chosen.backend->device());
    const std::int64_t count =
        largest_micro_batch(config, table, assignment, ownership, 0, *chosen.backend, filled_by_auto(free));
    config.training.micro_batch = std::max<std::int64_t>(1, count);
    const bool whole = count == config.training.batch / command.processes;
    const std::string number = whole       ? fmt::format("{}, all of a process's part of the batch, fits", count)
                               : count > 0 ? fmt::format("{}, the most that fit", count)
                                           : "not even 1 fits";
    fitted =
        fmt::format("training.micro_batch \"auto\": {} into the {} that are free here.", number, format_bytes(free));
  }
  Console console;
  const FlopsPerToken flops = flops_per_token(config.model, table, config.training.sequence_length);
  console.table(model_table(config, table, flops));
  console.table(optimizer_table(assignment, table));
  const std::string note = full_rank_note(assignment);
  if (!note.empty()) console.line(note);
  if (const std::string idle = idle_groups_note(assignment); !idle.empty()) console.line(idle);
  if (!assumed.empty()) console.line(assumed);
  if (!fitted.empty()) console.line(fitted);

  Table roles;
  roles.title = "parameters by role";
  for (const Role role : {Role::matrix, Role::embedding, Role::head, Role::vector, Role::scalar}) {
    if (table.elements(role) > 0) roles.rows.push_back({name_of(role), format_grouped(table.elements(role))});
  }
  roles.rows.push_back({});
  roles.rows.push_back({"in all", format_grouped(table.elements())});
  console.table(roles);

  const MemoryPlan memory = plan_memory(config, table, assignment, ownership, 0, *chosen.backend);
  console.table(memory_table(memory));

  const double step_tokens = static_cast<double>(config.training.batch * config.training.sequence_length);
  Table work;
  work.title = "arithmetic";
  work.rows = {
      {"parameters in products (N)", format_grouped(flops.matmul_parameters)},
      {"FLOPs a token, 6N", fmt::format("{:.4g}", flops.matmul)},
      {"FLOPs a token, attention 6LCT", fmt::format("{:.4g}", flops.attention)},
      {"FLOPs a step", fmt::format("{:.4g}", flops.total() * step_tokens)},
      {"FLOPs of the run", fmt::format("{:.4g}", flops.total() * static_cast<double>(config.training.tokens))}};
  console.table(work);

  Table sent;
  sent.title = fmt::format("moved through each of {} processes a step, by parallel.exchange", command.processes);
  sent.headers = {"exchange", "gradients", "parameters", "factors", "sketches", "in all"};
  nlohmann::ordered_json traffic_by_exchange;
  for (const Exchange exchange : {Exchange::parameters, Exchange::factors, Exchange::sketch}) {
    const TrafficPlan traffic =
        plan_traffic(Ownership(assignment, table, command.processes, exchange), computed_in_bf16(config));
    const auto share = [&](std::int64_t bytes) { return format_bytes(bytes / command.processes); };
    sent.rows.push_back({std::string(name_of(exchange)), share(traffic.gradients), share(traffic.parameters),
                         share(traffic.factors), share(traffic.sketches), share(traffic.total())});
    traffic_by_exchange[std::string(name_of(exchange))] = to_json(traffic);
  }
  if (command.processes > 1) {
    console.table(sent);
  } else {
    console.line("Traffic: none with one process; --processes N shows what N would exchange.");
  }
  if (!command.json.empty()) {
    const nlohmann::ordered_json plan = {{"config", config.name},
                                         {"processes", command.processes},
                                         {"exchange", std::string(name_of(config.parallel.exchange))},
                                         {"parameters", table.elements()},
                                         {"tokens_a_step", config.training.batch * config.training.sequence_length},
                                         {"flops_a_token", flops.total()},
                                         {"memory", to_json(memory)},
                                         {"traffic", traffic_by_exchange}};
    write_file_atomically(command.json, plan.dump(2) + "\n");
  }
  return Exit::done;
}

}  // namespace polaron

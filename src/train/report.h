// Start-up tables: the model, memory and optimizers of a run as a person reads them. Shared by `train` and `plan`.
#pragma once

#include <string>
#include <vector>

#include "config/config.h"
#include "train/console.h"
#include "train/plan.h"

namespace polaron {

Table model_table(const Config& config, const ParameterTable& table, const FlopsPerToken& flops);
Table memory_table(const MemoryPlan& memory);
Table optimizer_table(const Assignment& assignment, const ParameterTable& table);
// One sentence where matrices asked for a rank that is no less than their shorter side; empty otherwise.
std::string full_rank_note(const Assignment& assignment);
// One sentence where settings were given for parameters that the model does not have; empty otherwise.
std::string idle_groups_note(const Assignment& assignment);

// Bytes of anonymous memory resident in this process (Linux: RssAnon); 0 where the system does not say.
std::int64_t resident_bytes();

}  // namespace polaron

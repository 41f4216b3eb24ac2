// What changes from step to step by plan: the learning-rate factor and the momentum.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace polaron {

// Factor on every group's lr at step `step` (0: the first update) of `steps`. Warm-up rises linearly, from
// 1/warmup_steps at step 0 to 1 at step warmup_steps - 1; then constant, or linear or cosine down to final_fraction at
// the last step, or (wsd) constant until the last decay_fraction of the run and linear down to final_fraction from
// there; or (trapezoid) min(1, (1 - step/steps) / decay_fraction). A run of a single step takes it at factor 1.
double lr_factor(const ScheduleConfig& schedule, std::int64_t step, std::int64_t steps);

// Momentum at `step`: linear from momentum_start to momentum over momentum_warmup_steps.
double momentum_at(const OptimizerSettings& settings, std::int64_t step);

}  // namespace polaron

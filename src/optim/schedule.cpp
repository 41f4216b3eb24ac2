#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace polaron {

double lr_factor(const ScheduleConfig& schedule, std::int64_t step, std::int64_t steps) {
  const std::int64_t warmup = schedule.warmup_steps;
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup);
  const double final = schedule.final_fraction;
  // Share of [first, steps - 1] that lies behind `step`: all of it at the last step, even where that is `first` itself.
  // Only a run of a single step takes it at the peak rate.
  const auto progress = [&](std::int64_t first) {
    if (step >= steps - 1) return steps > 1 ? 1.0 : 0.0;
    return std::clamp(static_cast<double>(step - first) / static_cast<double>(steps - 1 - first), 0.0, 1.0);
  };
  switch (schedule.kind) {
    case ScheduleKind::constant:
      return 1.0;
    case ScheduleKind::linear:
      return 1.0 + (final - 1.0) * progress(warmup);
    case ScheduleKind::cosine:
      return final + (1.0 - final) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress(warmup)));
    case ScheduleKind::wsd: {
      const auto decay = static_cast<std::int64_t>(std::llround(schedule.decay_fraction * static_cast<double>(steps)));
      const std::int64_t first = std::max(warmup, steps - decay);
      return step < first ? 1.0 : 1.0 + (final - 1.0) * progress(first);
    }
    case ScheduleKind::trapezoid: {
      const double left = 1.0 - static_cast<double>(step) / static_cast<double>(steps);
      return schedule.decay_fraction > 0 ? std::min(1.0, left / schedule.decay_fraction) : 1.0;
    }
  }
  return 1.0;
}

double momentum_at(const OptimizerSettings& settings, std::int64_t step) {
  if (step >= settings.momentum_warmup_steps) return settings.momentum;
  const double share = static_cast<double>(step) / static_cast<double>(settings.momentum_warmup_steps);
  return settings.momentum_start + (settings.momentum - settings.momentum_start) * share;
}

}  // namespace polaron

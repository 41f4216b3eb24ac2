// The choices that a backend makes for its ops (Backend::tuned), the same in all processes and in a run that goes on.
#pragma once

#include <cstddef>
#include <span>

#include "train/session.h"
#include "train/step.h"

namespace polaron {

// Before the first step; collective. Takes over what a checkpoint has stored (empty: nothing). Otherwise, or where that
// was stored on another kind of device (said as a warning), the choices follow config.deterministic. True: a rule makes
// them when an op first runs, the same each time for one version of the libraries and one model of device, so that two
// fresh runs have the same bits. False: process 0 makes them by timing while all go through a step that changes nothing
// but the gradients, and the others take them over. Error(Exit::device) where the processes' devices differ then.
void settle_choices(Session& session, StepRunner& steps, std::span<const std::byte> stored);

}  // namespace polaron

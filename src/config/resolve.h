// After reading: derived values, and what cannot go together. Internal to src/config.
#pragma once

#include <string>

#include "config/config.h"

namespace polaron {

// Fills in everything that is derived from other keys. Throws Error(Exit::usage), naming `origin` and the pointer,
// where a required key is missing or keys contradict each other.
void resolve(Config& config, const std::string& origin);

}  // namespace polaron

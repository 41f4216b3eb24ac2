// Messages for a person: to stderr, with the level in front of warnings and errors. Machine-readable metrics go to
// metrics.jsonl instead (train/metrics.h). spdlog is behind these four functions so that its header stays in one file.
#pragma once

#include <string>

namespace polaron::log {

void info(const std::string& message);
void warn(const std::string& message);
void error(const std::string& message);

// Only this process writes; the others keep quiet below `error`. Called once after the communicator is up.
void set_rank(int rank);

}  // namespace polaron::log

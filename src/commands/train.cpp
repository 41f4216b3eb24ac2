#include "commands/commands.h"
#include "train/duration.h"
#include "train/trainer.h"

namespace polaron {

Exit run_train(const TrainCommand& command) {
  TrainOptions options;
  if (command.resume) options.resume = command.resume_from;
  if (!command.max_time.empty()) {
    options.max_seconds = static_cast<double>(parse_duration(command.max_time, "--max-time"));
  }
  return train(load_config(command.config, command.overrides), options);
}

}  // namespace polaron

#include <signal.h>

#include "base/log.h"
#include "comm/communicator.h"
#include "commands/commands.h"
#include "train/duration.h"
#include "train/trainer.h"

namespace polaron {

Exit run_train(const TrainCommand& command) {
  // A checkpoint that is asked for before the training loop listens (SignalGuard) would be of nothing new; by default
  // the signal would end the process. SIGINT and SIGTERM do: until then there is nothing to keep.
  ::signal(SIGUSR1, SIG_IGN);
  TrainOptions options;
  if (command.resume) options.resume = command.resume_from;
  options.auto_resume = command.auto_resume;
  if (!command.max_time.empty()) {
    options.max_seconds = static_cast<double>(parse_duration(command.max_time, "--max-time"));
  }
  // Before anything that may fail, so that a failure of one process ends all.
  const std::unique_ptr<Communicator> communicator = make_communicator();
  log::set_rank(communicator->rank());
  if (communicator->size() == 1) return train(load_config(command.config, command.overrides), options, *communicator);
  try {
    return train(load_config(command.config, command.overrides), options, *communicator);
  } catch (const std::exception&) {
    const Failure failure = describe_failure(std::current_exception());
    communicator->fail(failure.message, failure.code);
    return failure.code;
  }
}

}  // namespace polaron

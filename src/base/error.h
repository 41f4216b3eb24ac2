// The one exception type of the program, and the exit codes that it carries (README, "Exit codes").
#pragma once

#include <stdexcept>
#include <string>

namespace polaron {

enum class Exit : int {
  done = 0,
  bug = 1,          // of polaron; no Error carries it
  usage = 2,        // bad command line or config
  data = 3,         // bad shard, vocabulary or checkpoint, or a file that cannot be read or written
  numerical = 4,    // loss or gradient norm not finite
  device = 5,       // device or communication failure, out of memory
  interrupted = 6,  // stopped by a signal or --max-time after a checkpoint: resumable
};

// Something the user can act on. The message is one or more full sentences that name the thing (file, key, offset) and,
// where there is one, the remedy; main() prints it after "error: " and exits with `code`. Bugs are not Errors: they are
// std::logic_error and exit with 1.
class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Exit code() const { return code_; }

 private:
  Exit code_;
};

}  // namespace polaron

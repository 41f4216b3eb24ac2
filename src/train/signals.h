// SIGINT, SIGTERM and SIGUSR1 as requests that the training loop reads between two micro-batches.
#pragma once

#include <signal.h>

#include <array>

namespace polaron {

// While it lives, SIGINT and SIGTERM ask the loop to stop and SIGUSR1 asks for a checkpoint; interrupted system calls
// are restarted. Its destructor restores what was installed before. One at a time in a process: std::logic_error
// otherwise.
//
// Whoever insists gets through: a second SIGINT, or a second SIGTERM, ends the process at once with exit status 130.
// One that follows the first of its kind within 0.1 s is the same request: coreutils' timeout, for one, signals its
// child twice in a row. The two kinds are counted apart, because mpirun answers Ctrl-C by a SIGTERM to processes that
// the terminal has already sent SIGINT.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  bool stop_requested() const { return stop_signal() != 0; }
  int stop_signal() const;         // the first of SIGINT and SIGTERM that came; 0: none
  bool take_checkpoint_request();  // true once for any number of SIGUSR1 since the last call

 private:
  std::array<struct sigaction, 3> former_{};
};

// "SIGINT", "SIGTERM" or "SIGUSR1", for messages; "a signal" for any other.
const char* signal_name(int signal_number);

}  // namespace polaron

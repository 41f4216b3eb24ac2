#include "train/signals.h"

#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <system_error>

namespace polaron {
namespace {

constexpr std::array<int, 3> handled{SIGINT, SIGTERM, SIGUSR1};
constexpr std::int64_t same_request_ns = 100'000'000;

// A handler has no argument of its own: the one guard's state lives here. All of it is lock-free, hence safe to use in
// a handler ([support.signal]).
struct State {
  std::atomic<bool> guarded{false};
  std::atomic<int> stop_signal{0};
  std::atomic<bool> checkpoint{false};
  // Monotonic time of the first SIGINT and SIGTERM; 0: none yet.
  std::atomic<std::int64_t> first_interrupt{0};
  std::atomic<std::int64_t> first_termination{0};
};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free &&
              std::atomic<std::int64_t>::is_always_lock_free);
constinit State state;

std::int64_t now_ns() {
  struct timespec time {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);  // async-signal-safe
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

extern "C" void on_signal(int number) {
  const int saved_errno = errno;
  if (number == SIGUSR1) {
    state.checkpoint.store(true);
  } else {
    int none = 0;
    state.stop_signal.compare_exchange_strong(none, number);
    std::atomic<std::int64_t>& first = number == SIGINT ? state.first_interrupt : state.first_termination;
    const std::int64_t now = now_ns();
    std::int64_t before = 0;
    if (!first.compare_exchange_strong(before, now) && now - before > same_request_ns) {
      constexpr std::string_view message =
          "\nstopped at once by a second signal: nothing after the last checkpoint is kept\n";
      [[maybe_unused]] const auto written = ::write(STDERR_FILENO, message.data(), message.size());
      ::_exit(130);
    }
  }
  errno = saved_errno;
}

void reset() {
  state.stop_signal.store(0);
  state.checkpoint.store(false);
  state.first_interrupt.store(0);
  state.first_termination.store(0);
}

}  // namespace

SignalGuard::SignalGuard() {
  if (state.guarded.exchange(true)) throw std::logic_error("two SignalGuards at a time");
  reset();
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  for (const int number : handled) ::sigaddset(&action.sa_mask, number);
  for (std::size_t i = 0; i < handled.size(); ++i) {
    // Fails only for a number that is not a signal.
    if (::sigaction(handled[i], &action, &former_[i]) != 0) throw std::system_error(errno, std::generic_category());
  }
}

SignalGuard::~SignalGuard() {
  for (std::size_t i = 0; i < handled.size(); ++i) ::sigaction(handled[i], &former_[i], nullptr);
  reset();
  state.guarded.store(false);
}

int SignalGuard::stop_signal() const { return state.stop_signal.load(); }

bool SignalGuard::take_checkpoint_request() { return state.checkpoint.exchange(false); }

const char* signal_name(int signal_number) {
  switch (signal_number) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "a signal";
  }
}

}  // namespace polaron

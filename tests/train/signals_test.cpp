#include "train/signals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

namespace polaron {
namespace {

void wait_ms(long ms) {
  struct timespec left {
    ms / 1000, ms % 1000 * 1'000'000
  };
  while (::nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
}

// Runs `action` in a child and says how it ended: "exit 7", "signal 15". The child ends with what `action` returns.
std::string in_child(const std::function<int()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);  // the parting message is not the test's
    ::_exit(action());
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) throw std::runtime_error("fork or waitpid failed");
  return WIFEXITED(status) ? "exit " + std::to_string(WEXITSTATUS(status))
                           : "signal " + std::to_string(WTERMSIG(status));
}

TEST(Signals, ask_for_a_stop_once_each) {
  for (const int number : {SIGINT, SIGTERM}) {
    SignalGuard guard;
    EXPECT_FALSE(guard.stop_requested());
    ASSERT_EQ(::raise(number), 0);
    EXPECT_TRUE(guard.stop_requested());
    EXPECT_EQ(guard.stop_signal(), number);
    EXPECT_FALSE(guard.take_checkpoint_request());
  }
}

TEST(Signals, usr1_asks_for_one_checkpoint_and_no_stop) {
  SignalGuard guard;
  EXPECT_FALSE(guard.take_checkpoint_request());
  ::raise(SIGUSR1);
  ::raise(SIGUSR1);
  EXPECT_TRUE(guard.take_checkpoint_request());
  EXPECT_FALSE(guard.take_checkpoint_request());
  ::raise(SIGUSR1);
  EXPECT_TRUE(guard.take_checkpoint_request());
  EXPECT_FALSE(guard.stop_requested());
}

TEST(Signals, the_first_stop_signal_is_the_one_reported) {
  SignalGuard guard;
  ::raise(SIGTERM);
  ::raise(SIGINT);
  EXPECT_EQ(guard.stop_signal(), SIGTERM);
}

TEST(Signals, arrive_from_any_thread) {
  SignalGuard guard;
  std::thread([] { ::raise(SIGINT); }).join();
  EXPECT_TRUE(guard.stop_requested());
}

TEST(Signals, a_second_one_of_the_same_kind_ends_the_process_with_130) {
  for (const int number : {SIGINT, SIGTERM}) {
    EXPECT_EQ(in_child([number] {
                SignalGuard guard;
                ::raise(number);
                wait_ms(150);
                ::raise(number);
                return 1;
              }),
              "exit 130");
  }
}

TEST(Signals, a_pair_sent_at_once_or_of_both_kinds_is_one_request) {
  EXPECT_EQ(in_child([] {
              SignalGuard guard;
              ::raise(SIGTERM);  // as timeout(1) sends it: to the child, then to the group
              ::raise(SIGTERM);
              wait_ms(150);
              ::raise(SIGINT);
              return guard.stop_signal() == SIGTERM ? 7 : 1;
            }),
            "exit 7");
}

TEST(Signals, checkpoint_requests_never_end_the_process) {
  EXPECT_EQ(in_child([] {
              SignalGuard guard;
              for (int i = 0; i < 3; ++i) {
                ::raise(SIGUSR1);
                wait_ms(120);
              }
              return guard.take_checkpoint_request() && !guard.stop_requested() ? 7 : 1;
            }),
            "exit 7");
}

TEST(Signals, do_what_they_did_before_once_the_guard_is_gone) {
  EXPECT_EQ(in_child([] {
              { SignalGuard guard; }
              ::raise(SIGTERM);
              return 1;
            }),
            "signal " + std::to_string(SIGTERM));
  static volatile sig_atomic_t seen = 0;
  struct sigaction mine {};
  struct sigaction former {};
  mine.sa_handler = [](int) { seen = 1; };
  ::sigaction(SIGUSR1, &mine, &former);
  { SignalGuard guard; }
  ::raise(SIGUSR1);
  ::sigaction(SIGUSR1, &former, nullptr);
  EXPECT_EQ(seen, 1);
}

TEST(Signals, a_new_guard_knows_nothing_of_the_last_ones_requests) {
  {
    SignalGuard guard;
    ::raise(SIGINT);
    ::raise(SIGUSR1);
  }
  SignalGuard guard;
  EXPECT_FALSE(guard.stop_requested());
  EXPECT_FALSE(guard.take_checkpoint_request());
}

TEST(Signals, interrupted_system_calls_go_on) {
  EXPECT_EQ(in_child([] {
              SignalGuard guard;
              int ends[2];
              if (::pipe(ends) != 0) return 1;
              const pid_t parent = ::getpid();
              if (::fork() == 0) {
                wait_ms(50);
                ::kill(parent, SIGUSR1);
                wait_ms(50);
                const char byte = 'x';
                ::_exit(::write(ends[1], &byte, 1) == 1 ? 0 : 1);
              }
              char byte = 0;
              return ::read(ends[0], &byte, 1) == 1 && byte == 'x' && guard.take_checkpoint_request() ? 7 : 1;
            }),
            "exit 7");
}

TEST(Signals, there_is_one_guard_at_a_time) {
  SignalGuard guard;
  EXPECT_THROW(SignalGuard(), std::logic_error);
  ::raise(SIGINT);
  EXPECT_TRUE(guard.stop_requested());  // the failed one has left the first in place
}

}  // namespace
}  // namespace polaron

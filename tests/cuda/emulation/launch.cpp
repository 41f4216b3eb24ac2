// Launches: limits, blocks over OS threads, streams, the watchdog.
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#include "emulation/block.h"
#include "emulation/emulation.h"

namespace polaron::cuda::emulation {
namespace {

// Ends the process when a fiber runs on and on: nothing can take the turn from it.
class Watchdog {
 public:
  Watchdog() : thread_([this](const std::stop_token& stop) { watch(stop); }) {}
  ~Watchdog() {
    thread_.request_stop();
    wake_.notify_all();
  }
  void add(BlockRunner* runner) {
    const std::lock_guard lock(mutex_);
    watched_.push_back({runner, 0, {}});
  }
  void remove(const BlockRunner* runner) {
    const std::lock_guard lock(mutex_);
    std::erase_if(watched_, [&](const Watched& watched) { return watched.runner == runner; });
  }

 private:
  struct Watched {
    BlockRunner* runner;
    std::uint64_t switches;
    std::chrono::steady_clock::time_point since;
  };

  void watch(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested()) {
      wake_.wait_for(lock, std::chrono::milliseconds(100));
      const auto now = std::chrono::steady_clock::now();
      for (Watched& watched : watched_) {
        const KernelRun* const kernel = watched.runner->kernel.load();
        const std::uint64_t switches = watched.runner->switches.load();
        if (kernel == nullptr || switches != watched.switches) {
          watched.switches = switches;
          watched.since = now;
        } else if (std::chrono::duration<double>(now - watched.since).count() > options().seconds_a_block) {
          std::fprintf(stderr, "emulation: %s runs without end\n", watched.runner->whereabouts().c_str());
          std::abort();
        }
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Watched> watched_;
  std::jthread thread_;  // last: starts when the rest is there
};

Watchdog& watchdog() {
  static Watchdog instance;
  return instance;
}

// A runner keeps its stacks from launch to launch.
class WatchedRunner {
 public:
  WatchedRunner() { watchdog().add(&runner_); }
  WatchedRunner(const WatchedRunner&) = delete;
  WatchedRunner& operator=(const WatchedRunner&) = delete;
  ~WatchedRunner() { watchdog().remove(&runner_); }
  BlockRunner& operator*() { return runner_; }

 private:
  BlockRunner runner_;
};

BlockRunner& runner_of_this_thread() {
  thread_local WatchedRunner runner;
  return *runner;
}

// OS threads that wait for launches. Thread 0 is the caller.
class Team {
 public:
  explicit Team(int threads) {
    for (int i = 1; i < threads; ++i) members_.emplace_back([this, i](const std::stop_token& stop) { serve(stop, i); });
  }
  ~Team() {
    for (std::jthread& member : members_) member.request_stop();
    wake_.notify_all();
  }
  int size() const { return static_cast<int>(members_.size()) + 1; }

  void run(const std::function<void(int)>& share) {
    {
      const std::lock_guard lock(mutex_);
      share_ = &share;
      ++round_;
      busy_ = size() - 1;
    }
    wake_.notify_all();
    share(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void serve(const std::stop_token& stop, int member) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, stop, [&] { return round_ != seen; });
      if (stop.stop_requested()) return;
      seen = round_;
      const std::function<void(int)>& share = *share_;
      lock.unlock();
      share(member);
      lock.lock();
      if (--busy_ == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable done_;
  const std::function<void(int)>* share_ = nullptr;
  std::uint64_t round_ = 0;
  int busy_ = 0;
  std::vector<std::jthread> members_;
};

Team& team(int threads) {
  static std::unique_ptr<Team> instance;
  watchdog();  // made before, so that it goes after
  if (instance == nullptr || instance->size() != threads) instance = std::make_unique<Team>(threads);
  return *instance;
}

void check_limits(const std::string& name, const void* kernel, const LaunchSize& size) {
  const auto refuse = [&](const std::string& what) { throw Fault("launch of " + name + ": " + what); };
  const dim3 t = size.threads, b = size.blocks;
  if (t.x == 0 || t.y == 0 || t.z == 0 || t.x > 1024 || t.y > 1024 || t.z > 64 || t.x * t.y * t.z > 1024) {
    refuse("blocks of " + std::to_string(t.x) + " x " + std::to_string(t.y) + " x " + std::to_string(t.z) + " threads");
  }
  if (b.x == 0 || b.y == 0 || b.z == 0 || b.x > 0x7fffffffU || b.y > 65535 || b.z > 65535) {
    refuse("a grid of " + std::to_string(b.x) + " x " + std::to_string(b.y) + " x " + std::to_string(b.z) + " blocks");
  }
  if (size.shared > dynamic_shared_limit(kernel)) {
    refuse(std::to_string(size.shared) + " bytes of dynamic shared memory, more than the " +
           std::to_string(dynamic_shared_limit(kernel)) + " that were asked for");
  }
}

void run_blocks(const KernelRun& kernel) {
  const dim3 grid = kernel.size.blocks;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  const auto threads = static_cast<int>(std::min<std::uint64_t>(blocks, std::max(kernel.options.os_threads, 1)));
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::exception_ptr fault;
  // Neighbouring blocks go to different OS threads, so that ThreadSanitizer sees races between them.
  const std::function<void(int)> share = [&](int member) {
    for (std::uint64_t block = static_cast<std::uint64_t>(member); block < blocks && !stop;
         block += static_cast<std::uint64_t>(kernel.options.os_threads)) {
      try {
        const std::uint64_t rest = block / grid.x;
        runner_of_this_thread().run(kernel,
                                    {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(rest % grid.y),
                                     static_cast<unsigned>(rest / grid.y)});
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!fault) fault = std::current_exception();
        stop = true;
      }
    }
  };
  if (threads == 1) {
    for (int member = 0; member < kernel.options.os_threads; ++member) share(member);
  } else {
    team(kernel.options.os_threads).run(share);
  }
  if (fault) std::rethrow_exception(fault);
}

std::mutex names_mutex;
std::set<std::string>& names() {
  static std::set<std::string> all;
  return all;
}

}  // namespace

Options& options() {
  static Options current;
  return current;
}

std::set<std::string> launched_kernels() {
  const std::lock_guard lock(names_mutex);
  return names();
}

void launch(std::string name, const void* kernel, const LaunchSize& size, cudaStream_t stream,
            std::function<void()> body) {
  check_limits(name, kernel, size);
  {
    const std::lock_guard lock(names_mutex);
    names().insert(name);
  }
  enqueue(stream, [run = KernelRun{std::move(name), size, whole_shared_limit(kernel), std::move(body), options()}] {
    run_blocks(run);
  });
}

}  // namespace polaron::cuda::emulation

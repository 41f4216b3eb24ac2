// Runs the threads of one block after the other as fibers on the calling OS thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "emulation/device_code.h"
#include "emulation/emulation.h"
#include "emulation/fiber.h"

namespace polaron::cuda::emulation {

// What all blocks of a launch share.
struct KernelRun {
  std::string name;
  LaunchSize size;
  std::size_t most_shared;  // bytes of a block, static and dynamic together
  std::function<void()> body;
  Options options;
};

// For messages.
std::string text_of(const Where& where);
const char* text_of(WarpOp op);

class BlockRunner {
 public:
  BlockRunner();
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;
  ~BlockRunner();

  // Throws Fault.
  void run(const KernelRun& kernel, uint3 block);

  // The runner whose fiber is being run by this OS thread; throws std::logic_error outside of a kernel.
  static BlockRunner& current();

  // Called by fibers.
  void barrier(const Where& where);
  std::uint64_t warp_operation(WarpOp op, unsigned mask, std::uint64_t value, int source, const Where& where);
  void check_access(const void* address, std::size_t bytes, Space space);
  void* static_shared(const void* key, std::size_t bytes);
  void* dynamic_shared() { return dynamic_shared_.get(); }
  int lane() const { return running_ % 32; }
  void warp_collective(void* mine, WarpAction action, const Where& where);
  AsyncCopies& async_copies() { return threads_[static_cast<std::size_t>(running_)].copies; }

  // For the watchdog, from another OS thread: what runs, and how often fibers were switched. Null kernel: nothing runs.
  std::atomic<const KernelRun*> kernel{nullptr};
  std::atomic<std::uint64_t> switches{0};
  std::string whereabouts() const;

 private:
  enum class State : std::uint8_t { ready, at_barrier, at_warp_operation, finished };
  struct Thread {
    Context context;
    State state = State::ready;
    uint3 index{};
    Where where;
    // at_warp_operation:
    WarpOp op{};
    unsigned mask = 0;
    std::uint64_t value = 0;  // given; then the result
    int source = 0;
    void* given = nullptr;  // to a collective
    WarpAction action = nullptr;
    AsyncCopies copies;
    void* tsan_fiber = nullptr;
  };
  static constexpr int kSyncs = 64;  // meetings of one warp that ThreadSanitizer tells apart
  struct Meeting {
    WarpOp op;
    unsigned mask, arrived;
    Where where;
    char* sync;  // what ThreadSanitizer knows it by
  };
  struct Warp {
    Meeting meetings[32];
    int open = 0;
    unsigned opened = 0;
    char syncs[kSyncs];
  };
  struct Freed {
    void operator()(void* memory) const;
  };
  using Memory = std::unique_ptr<void, Freed>;
  struct StaticShared {
    const void* key;
    Memory memory;
    std::size_t bytes;
  };

  static void fiber_main(void* runner);
  static Memory poisoned(std::size_t bytes);
  void begin(const KernelRun& kernel, uint3 block);
  void turns();
  void arrange(std::uint64_t pass);
  void enter(int thread);
  void leave();  // from the running fiber to the scheduler
  void release_barrier();
  static Meeting& meeting_of(Warp& warp, const Thread& thread);
  void carry_out(const Meeting& meeting, int first);
  [[noreturn]] void fail_in_fiber(std::string what);
  [[noreturn]] void fail(const std::string& what);
  void describe_standstill();
  std::string name_of(int thread) const;
  std::string standing(int thread) const;
  bool in_shared(const void* address);
  void abandon();

  Context scheduler_;
  Stacks stacks_;
  std::vector<Thread> threads_;
  std::vector<int> order_;
  int count_ = 0, running_ = -1, finished_ = 0, waiting_ = 0;
  uint3 block_{};
  std::uint64_t block_number_ = 0;
  unsigned phase_ = 0;  // barriers passed
  std::string fault_;
  Memory dynamic_shared_{nullptr};
  std::vector<StaticShared> static_shared_;
  void* tsan_scheduler_ = nullptr;
  char begin_sync_ = 0, end_sync_ = 0, static_sync_ = 0, barrier_sync_[2] = {};
  std::vector<Warp> warps_;
};

}  // namespace polaron::cuda::emulation

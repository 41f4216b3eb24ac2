#include "emulation/block.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>

// The sanitizers' interfaces, null where the program is built without them. This file itself is compiled without: its
// switches would look like races and broken stacks.
extern "C" {
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void*, std::size_t);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned);
[[gnu::weak]] void __tsan_destroy_fiber(void*);
[[gnu::weak]] void __tsan_switch_to_fiber(void*, unsigned);
[[gnu::weak]] void __tsan_acquire(void*);
[[gnu::weak]] void __tsan_release(void*);
}

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace polaron::cuda::emulation {
namespace {

constexpr unsigned kSwitchWithoutOrder = 1;  // for ThreadSanitizer: a switch orders nothing, only meetings do

thread_local BlockRunner* current_runner = nullptr;

void acquire(void* sync) {
  if (&__tsan_acquire != nullptr) __tsan_acquire(sync);
}
void release(void* sync) {
  if (&__tsan_release != nullptr) __tsan_release(sync);
}

bool same(const Where& a, const Where& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

bool within(const void* address, const void* begin, std::size_t bytes) {
  const auto* const at = static_cast<const std::byte*>(address);
  const auto* const from = static_cast<const std::byte*>(begin);
  return at >= from && at < from + bytes;
}

// SplitMix64 (Steele, Lea and Flood 2014).
std::uint64_t scramble(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

}  // namespace

void* static_shared_memory(const void* key, std::size_t bytes) {
  return BlockRunner::current().static_shared(key, bytes);
}
void* dynamic_shared_memory() { return BlockRunner::current().dynamic_shared(); }
void check_access(const void* address, std::size_t bytes, Space space) {
  BlockRunner::current().check_access(address, bytes, space);
}
void block_barrier(const Where& where) { BlockRunner::current().barrier(where); }
std::uint64_t warp_operation(WarpOp op, unsigned mask, std::uint64_t value, int source, const Where& where) {
  return BlockRunner::current().warp_operation(op, mask, value, source, where);
}
int lane() { return BlockRunner::current().lane(); }
void warp_collective(void* mine, WarpAction action, const Where& where) {
  BlockRunner::current().warp_collective(mine, action, where);
}
AsyncCopies& async_copies() { return BlockRunner::current().async_copies(); }

BlockRunner& BlockRunner::current() {
  if (current_runner == nullptr) throw std::logic_error("device code ran outside of a kernel");
  return *current_runner;
}

BlockRunner::BlockRunner() = default;
BlockRunner::~BlockRunner() { abandon(); }

void BlockRunner::Freed::operator()(void* memory) const { std::free(memory); }

// Memory of exactly this size, so that AddressSanitizer sees what goes beyond; all bits set are NaN in every format.
BlockRunner::Memory BlockRunner::poisoned(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max<std::size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  std::memset(memory, 0xFF, bytes);
  return Memory(memory);
}

// For ThreadSanitizer the memory is the scheduler's, not that of the thread which asks first: its first write must not
// look like one of that thread.
void* BlockRunner::static_shared(const void* key, std::size_t bytes) {
  const auto known = std::find_if(static_shared_.begin(), static_shared_.end(),
                                  [&](const StaticShared& entry) { return entry.key == key; });
  void* memory = known == static_shared_.end() ? nullptr : known->memory.get();
  if (memory == nullptr) {
    std::size_t all = kernel.load()->size.shared + bytes;
    for (const StaticShared& entry : static_shared_) all += entry.bytes;
    if (all > kernel.load()->most_shared) {
      fail_in_fiber("needs " + std::to_string(all) + " bytes of shared memory, static and dynamic; " +
                    std::to_string(kernel.load()->most_shared) + " are allowed");
    }
    const bool tsan = &__tsan_switch_to_fiber != nullptr;
    if (tsan) __tsan_switch_to_fiber(tsan_scheduler_, kSwitchWithoutOrder);
    static_shared_.push_back({key, poisoned(bytes), bytes});
    memory = static_shared_.back().memory.get();
    release(&static_sync_);
    if (tsan) __tsan_switch_to_fiber(threads_[static_cast<std::size_t>(running_)].tsan_fiber, kSwitchWithoutOrder);
  }
  acquire(&static_sync_);
  return memory;
}

void BlockRunner::run(const KernelRun& run, uint3 block) {
  begin(run, block);
  kernel = &run;
  current_runner = this;
  const auto end = [&] {
    current_runner = nullptr;
    kernel = nullptr;
    dynamic_shared_.reset();
    static_shared_.clear();
  };
  try {
    turns();
  } catch (...) {
    if (&__tsan_switch_to_fiber != nullptr) {  // what the fibers have done comes before what follows
      for (int i = 0; i < count_; ++i) {
        __tsan_switch_to_fiber(threads_[static_cast<std::size_t>(i)].tsan_fiber, kSwitchWithoutOrder);
        release(&end_sync_);
      }
      __tsan_switch_to_fiber(tsan_scheduler_, kSwitchWithoutOrder);
      acquire(&end_sync_);
    }
    abandon();
    end();
    throw;
  }
  acquire(&end_sync_);  // before shared memory is freed
  end();
}

void BlockRunner::begin(const KernelRun& run, uint3 block) {
  const dim3 size = run.size.threads, grid = run.size.blocks;
  count_ = static_cast<int>(size.x * size.y * size.z);
  stacks_.reserve(1024);
  if (threads_.empty()) threads_.resize(1024);
  order_.resize(static_cast<std::size_t>(count_));
  warps_.resize(32);
  for (Warp& warp : warps_) warp.open = 0;
  block_ = block;
  block_number_ = block.x + grid.x * (block.y + std::uint64_t{grid.y} * block.z);
  blockIdx = block;
  blockDim = size;
  gridDim = grid;
  phase_ = 0;
  finished_ = waiting_ = 0;
  fault_.clear();
  dynamic_shared_ = poisoned(run.size.shared);
  if (&__tsan_get_current_fiber != nullptr) tsan_scheduler_ = __tsan_get_current_fiber();
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    thread.state = State::ready;
    thread.copies.forget();
    const auto n = static_cast<unsigned>(i);
    thread.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    prepare(thread.context, stacks_.stack(i), Stacks::kBytes, &BlockRunner::fiber_main, this);
    if (&__tsan_create_fiber != nullptr && thread.tsan_fiber == nullptr) thread.tsan_fiber = __tsan_create_fiber(0);
  }
  release(&begin_sync_);
}

void BlockRunner::fiber_main(void* argument) {
  auto& runner = *static_cast<BlockRunner*>(argument);
  acquire(&runner.begin_sync_);
  acquire(&runner.end_sync_);  // blocks that shared this memory before
  try {
    runner.kernel.load()->body();
  } catch (const std::exception& error) {
    runner.fault_ = error.what();
  }
  release(&runner.end_sync_);
  runner.threads_[static_cast<std::size_t>(runner.running_)].state = State::finished;
  ++runner.finished_;
  runner.leave();
}

void BlockRunner::enter(int thread) {
  Thread& to = threads_[static_cast<std::size_t>(thread)];
  running_ = thread;
  threadIdx = to.index;
  switches.store(switches.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  if (&__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(to.tsan_fiber, kSwitchWithoutOrder);
  switch_context(scheduler_, to.context);
}

void BlockRunner::leave() {
  Thread& from = threads_[static_cast<std::size_t>(running_)];
  if (&__tsan_switch_to_fiber != nullptr) __tsan_switch_to_fiber(tsan_scheduler_, kSwitchWithoutOrder);
  switch_context(from.context, scheduler_);
}

void BlockRunner::arrange(std::uint64_t pass) {
  const Options& options = kernel.load()->options;
  if (options.order != Order::random) {
    if (pass > 0) return;
    for (int i = 0; i < count_; ++i) order_[i] = options.order == Order::forward ? i : count_ - 1 - i;
    return;
  }
  if (pass == 0) {
    for (int i = 0; i < count_; ++i) order_[i] = i;
  }
  std::uint64_t random = scramble(options.seed ^ scramble(block_number_ * 0x10001U + pass));
  for (int i = count_ - 1; i > 0; --i) {
    random = scramble(random);
    std::swap(order_[i], order_[static_cast<int>(random % static_cast<std::uint64_t>(i + 1))]);
  }
}

void BlockRunner::turns() {
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t pass = 0; finished_ < count_; ++pass) {
    arrange(pass);
    bool moved = false;
    for (const int thread : order_) {
      if (threads_[static_cast<std::size_t>(thread)].state != State::ready) continue;
      enter(thread);
      moved = true;
      if (fault_.empty()) continue;
      acquire(&end_sync_);
      fail(name_of(thread) + " " + fault_);
    }
    if (waiting_ == count_) {
      release_barrier();
    } else if (!moved) {
      describe_standstill();
    }
    if (pass % 256 == 255) {
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      if (spent.count() > kernel.load()->options.seconds_a_block) fail("does not come to an end");
    }
  }
}

void BlockRunner::barrier(const Where& where) {
  Thread& me = threads_[static_cast<std::size_t>(running_)];
  me.state = State::at_barrier;
  me.where = where;
  ++waiting_;
  // One variable would not do: threads that have gone on arrive at the next barrier while others still have to leave
  // this one, and what they release must not reach these.
  char* const sync = &barrier_sync_[phase_ % 2];
  release(sync);
  leave();
  acquire(sync);
}

void BlockRunner::release_barrier() {
  const Thread& first = threads_[0];
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    if (!same(thread.where, first.where)) {
      fail("divergent __syncthreads: " + name_of(0) + standing(0) + ", but " + name_of(i) + standing(i));
    }
    thread.state = State::ready;
  }
  waiting_ = 0;
  ++phase_;
}

std::uint64_t BlockRunner::warp_operation(WarpOp op, unsigned mask, std::uint64_t value, int source,
                                          const Where& where) {
  Thread& me = threads_[static_cast<std::size_t>(running_)];
  const int first = running_ / 32 * 32;
  const auto bit = [](int lane) { return 1U << static_cast<unsigned>(lane); };
  if ((mask & bit(running_ - first)) == 0) {
    fail_in_fiber("calls " + std::string(text_of(op)) + " at " + text_of(where) +
                  " with a mask that lacks its own lane");
  }
  if (first + 32 - std::countl_zero(mask) > count_) {
    fail_in_fiber("calls " + std::string(text_of(op)) + " at " + text_of(where) +
                  " with a mask of lanes that do not exist");
  }
  if (op == WarpOp::shuffle && (source < 0 || source > 31 || (mask & bit(source)) == 0)) {
    fail_in_fiber("reads lane " + std::to_string(source) + " at " + text_of(where) +
                  ", which is not in the shuffle's mask");
  }
  me.state = State::at_warp_operation;
  me.value = value;
  me.source = source;
  me.where = where;
  me.op = op;
  me.mask = mask;
  Warp& warp = warps_[static_cast<std::size_t>(first / 32)];
  Meeting& meeting = meeting_of(warp, me);
  meeting.arrived |= bit(running_ - first);
  // Only __syncwarp orders memory; shuffles and votes hand on values and no more.
  char* const sync = op == WarpOp::sync ? meeting.sync : nullptr;
  if (sync != nullptr) release(sync);
  if (meeting.arrived == mask) {
    carry_out(meeting, first);
    meeting = warp.meetings[--warp.open];
  } else {
    leave();
  }
  if (sync != nullptr) acquire(sync);
  return me.value;
}

void BlockRunner::warp_collective(void* mine, WarpAction action, const Where& where) {
  Thread& me = threads_[static_cast<std::size_t>(running_)];
  me.given = mine;
  me.action = action;
  warp_operation(WarpOp::collective, 0xffffffffU, 0, 0, where);
}

// The meeting that this thread's operation belongs to; the first lane to come opens it.
BlockRunner::Meeting& BlockRunner::meeting_of(Warp& warp, const Thread& thread) {
  for (int i = 0; i < warp.open; ++i) {
    Meeting& meeting = warp.meetings[i];
    if (meeting.op == thread.op && meeting.mask == thread.mask && same(meeting.where, thread.where)) return meeting;
  }
  Meeting& meeting = warp.meetings[warp.open++];  // no lane waits at two, so there are 32 at most
  meeting = {thread.op, thread.mask, 0, thread.where, &warp.syncs[warp.opened++ % kSyncs]};
  return meeting;
}

void BlockRunner::carry_out(const Meeting& meeting, int first) {
  if (meeting.op == WarpOp::collective) {  // of whole warps
    void* lanes[32];
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = threads_[static_cast<std::size_t>(first + lane)].given;
    threads_[static_cast<std::size_t>(first)].action(lanes);
  }
  std::uint64_t given[32] = {}, sum = 0, votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((meeting.mask >> static_cast<unsigned>(lane) & 1U) == 0) continue;
    given[lane] = threads_[static_cast<std::size_t>(first + lane)].value;
    sum += given[lane];
    if (given[lane] != 0) votes |= std::uint64_t{1} << static_cast<unsigned>(lane);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if ((meeting.mask >> static_cast<unsigned>(lane) & 1U) == 0) continue;
    Thread& thread = threads_[static_cast<std::size_t>(first + lane)];
    thread.value = meeting.op == WarpOp::shuffle  ? given[thread.source]
                   : meeting.op == WarpOp::ballot ? votes
                                                  : sum & 0xffffffffU;
    thread.state = State::ready;
  }
}

void BlockRunner::check_access(const void* address, std::size_t bytes, Space space) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    fail_in_fiber("reads or writes " + std::to_string(bytes) + " bytes at an address that is not a multiple of that");
  }
  const bool shared = in_shared(address);
  if (space == Space::shared && !shared) fail_in_fiber("takes an address outside of shared memory for shared memory");
  if (space == Space::global && shared) fail_in_fiber("takes an address in shared memory for device memory");
  if (space == Space::global && within(address, stacks_.stack(running_), Stacks::kBytes)) {
    fail_in_fiber("takes the address of a local variable for device memory");
  }
}

bool BlockRunner::in_shared(const void* address) {
  if (within(address, dynamic_shared_.get(), kernel.load()->size.shared)) return true;
  return std::any_of(static_shared_.begin(), static_shared_.end(),
                     [&](const StaticShared& entry) { return within(address, entry.memory.get(), entry.bytes); });
}

// The fiber is left for good: abandon() clears up.
void BlockRunner::fail_in_fiber(std::string what) {
  fault_ = std::move(what);
  release(&end_sync_);
  leave();
  std::abort();  // not reached
}

// Forgets fibers that were left in the middle.
void BlockRunner::abandon() {
  for (Thread& thread : threads_) {
    if (thread.tsan_fiber != nullptr && &__tsan_destroy_fiber != nullptr) __tsan_destroy_fiber(thread.tsan_fiber);
    thread.tsan_fiber = nullptr;
  }
  if (&__asan_unpoison_memory_region != nullptr) {
    for (int i = 0; i < static_cast<int>(threads_.size()); ++i)
      __asan_unpoison_memory_region(stacks_.stack(i), Stacks::kBytes);
  }
}

}  // namespace polaron::cuda::emulation

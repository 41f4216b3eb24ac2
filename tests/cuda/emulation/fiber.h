// Fibers: flows of control with stacks of their own that one OS thread runs in turns. A switch costs a few nanoseconds,
// which is what makes it possible to run each CUDA thread of a block as a fiber.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace polaron::cuda::emulation {

// Where a flow of control stands while it does not run.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t state{};
#endif
};

// Makes `context` a flow that begins with entry(argument) on the given stack when it is first switched to. `entry`
// never returns: it ends by switching away for good.
void prepare(Context& context, void* stack, std::size_t bytes, void (*entry)(void*), void* argument);

// Goes on at `to`; returns when something switches to `from`.
void switch_context(Context& from, Context& to);

// Memory for the stacks of many fibers, each above a page that faults: an overflow ends the process instead of writing
// into the neighbour. Pages are only backed where a fiber has used them.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks();

  void reserve(int count);  // at least so many; those there already may move
  void* stack(int index) const;
  static constexpr std::size_t kBytes = std::size_t{128} << 10U;

 private:
  std::byte* memory_ = nullptr;
  int count_ = 0;
};

}  // namespace polaron::cuda::emulation

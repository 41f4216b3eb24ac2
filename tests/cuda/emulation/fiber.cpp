#include "emulation/fiber.h"

#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <new>

namespace polaron::cuda::emulation {
namespace {
constexpr std::size_t kGuard = 4096;
}

#if defined(__x86_64__)

// The System V ABI lets a function change everything but rbx, rbp, r12 to r15 and the stack pointer: these are kept on
// the stack that is left. A new fiber's stack looks as if it had been left with its entry in r13 and the argument in
// r12.
asm(R"(
.text
.type polaron_switch_stack,@function
polaron_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size polaron_switch_stack, .-polaron_switch_stack

.type polaron_start_fiber,@function
polaron_start_fiber:
  movq %r12, %rdi
  callq *%r13
  ud2
.size polaron_start_fiber, .-polaron_start_fiber
)");

extern "C" {
void polaron_switch_stack(void** leave, void* enter);
void polaron_start_fiber();
}

void prepare(Context& context, void* stack, std::size_t bytes, void (*entry)(void*), void* argument) {
  void** top = reinterpret_cast<void**>(static_cast<std::byte*>(stack) + bytes);  // a multiple of 16
  *--top = nullptr;  // ends a debugger's walk, and keeps the stack aligned as after a call
  *--top = nullptr;
  *--top = std::bit_cast<void*>(&polaron_start_fiber);  // `ret` goes here
  *--top = nullptr;                                     // rbp
  *--top = nullptr;                                     // rbx
  *--top = argument;                                    // r12
  *--top = std::bit_cast<void*>(entry);                 // r13
  *--top = nullptr;                                     // r14
  *--top = nullptr;                                     // r15
  context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) { polaron_switch_stack(&from.stack_pointer, to.stack_pointer); }

#else

namespace {
// makecontext hands on ints only.
void start(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
  const auto join = [](unsigned high, unsigned low) {
    return static_cast<std::uintptr_t>((std::uint64_t{high} << 32U) | low);
  };
  reinterpret_cast<void (*)(void*)>(join(entry_high, entry_low))(
      reinterpret_cast<void*>(join(argument_high, argument_low)));
}
unsigned high(std::uint64_t value) { return static_cast<unsigned>(value >> 32U); }
unsigned low(std::uint64_t value) { return static_cast<unsigned>(value); }
}  // namespace

void prepare(Context& context, void* stack, std::size_t bytes, void (*entry)(void*), void* argument) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  const auto e = reinterpret_cast<std::uintptr_t>(entry), a = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&context.state, reinterpret_cast<void (*)()>(&start), 4, high(e), low(e), high(a), low(a));
}

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

Stacks::~Stacks() {
  if (memory_ != nullptr) munmap(memory_, static_cast<std::size_t>(count_) * (kBytes + kGuard));
}

void Stacks::reserve(int count) {
  if (count <= count_) return;
  if (memory_ != nullptr) munmap(memory_, static_cast<std::size_t>(count_) * (kBytes + kGuard));
  memory_ = nullptr;
  count_ = 0;
  const std::size_t bytes = static_cast<std::size_t>(count) * (kBytes + kGuard);
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(mapped);
  count_ = count;
  for (int i = 0; i < count; ++i) {
    mprotect(memory_ + static_cast<std::size_t>(i) * (kBytes + kGuard), kGuard, PROT_NONE);
  }
}

void* Stacks::stack(int index) const { return memory_ + static_cast<std::size_t>(index) * (kBytes + kGuard) + kGuard; }

}  // namespace polaron::cuda::emulation

// What a block says when it cannot go on: which thread stands where, and why.
#include <bit>
#include <string>

#include "emulation/block.h"

namespace polaron::cuda::emulation {
namespace {

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

}  // namespace

std::string text_of(const Where& where) {
  const std::string path = where.file;
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(where.line);
}

const char* text_of(WarpOp op) {
  switch (op) {
    case WarpOp::sync:
      return "__syncwarp";
    case WarpOp::shuffle:
      return "a shuffle";
    case WarpOp::ballot:
      return "a vote";
    case WarpOp::add:
      return "__reduce_add_sync";
    case WarpOp::collective:
      return "a matrix operation";
  }
  return "?";
}

void BlockRunner::fail(const std::string& what) {
  throw Fault("kernel " + kernel.load()->name + ", block " + text_of(block_) + ": " + what);
}

void BlockRunner::describe_standstill() {
  const auto find = [&](auto wanted) {
    for (int i = 0; i < count_; ++i) {
      if (wanted(threads_[static_cast<std::size_t>(i)].state)) return i;
    }
    return -1;
  };
  const int barrier = find([](State state) { return state == State::at_barrier; });
  const int elsewhere = find([](State state) { return state != State::at_barrier; });
  if (barrier >= 0) {
    fail("divergent __syncthreads: " + name_of(barrier) + standing(barrier) + ", but " + name_of(elsewhere) +
         standing(elsewhere));
  }
  const int waiting = find([](State state) { return state == State::at_warp_operation; });
  const int first = waiting / 32 * 32;
  const Meeting& meeting =
      meeting_of(warps_[static_cast<std::size_t>(waiting / 32)], threads_[static_cast<std::size_t>(waiting)]);
  const int other = first + std::countr_zero(meeting.mask & ~meeting.arrived);
  fail("divergent warp operation: " + name_of(waiting) + standing(waiting) + ", but " + name_of(other) +
       standing(other) + ", or gives another mask");
}

std::string BlockRunner::name_of(int thread) const {
  return "thread " + text_of(threads_[static_cast<std::size_t>(thread)].index);
}

std::string BlockRunner::standing(int thread) const {
  const Thread& t = threads_[static_cast<std::size_t>(thread)];
  switch (t.state) {
    case State::ready:
      return " runs";
    case State::at_barrier:
      return " waits at " + text_of(t.where) + " (__syncthreads)";
    case State::at_warp_operation:
      return " waits at " + text_of(t.where) + " (" + text_of(t.op) + ")";
    case State::finished:
      return " has returned";
  }
  return "";
}

std::string BlockRunner::whereabouts() const {
  const KernelRun* const run = kernel.load();
  if (run == nullptr) return "nothing";
  return "kernel " + run->name + ", block " + text_of(block_) + ", " + name_of(running_);
}

}  // namespace polaron::cuda::emulation

// Runs CUDA kernels on the host, for machines without a GPU: the same .cu files, compiled by a host compiler, with
// every thread of a block as a fiber on one OS thread and blocks spread over a few OS threads. This header is what
// tests and the launch of cuda/launch.h see; what kernels see is emulation/device_code.h.
//
// What is checked while a kernel runs: that all threads of a block meet at the same __syncthreads, that the lanes named
// in a warp operation's mask meet at that operation, that sizes of blocks, grids and shared memory are within the
// limits of sm_90, that nothing runs without end. Shared memory is filled with NaN before each block. Not emulated:
// weak memory ordering, what lanes of a warp do in lockstep, spinning on another thread's progress.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>

namespace polaron::cuda::emulation {

// What a kernel did wrong: a sentence with kernel, block and thread. Thrown by the launch.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// In which order the threads of a block get their turns between two meeting points. Correct kernels give the same bits
// for all.
enum class Order : std::uint8_t { forward, reverse, random };

struct Options {
  Order order = Order::forward;
  std::uint64_t seed = 1;         // of Order::random
  int os_threads = 2;             // that run blocks
  double seconds_a_block = 60.0;  // more is taken for an endless loop: a Fault where the kernel still reaches meeting
                                  // points, otherwise a message and the end of the process
  // Streams hold their work back until something waits for it, as late as CUDA allows: shows missing waits and host
  // memory that dies too early.
  bool lazy_streams = false;
};

// The options in force. Changed by tests only, between launches.
Options& options();

// Changes options for its lifetime.
class WithOptions {
 public:
  explicit WithOptions(const Options& changed) : before_(options()) { options() = changed; }
  WithOptions(const WithOptions&) = delete;
  WithOptions& operator=(const WithOptions&) = delete;
  ~WithOptions() { options() = before_; }

 private:
  Options before_;
};

struct LaunchSize {
  dim3 blocks, threads;
  std::size_t shared = 0;  // bytes of dynamic shared memory
};

// Queues a kernel: body() is what each thread runs; kernel: its address, for attributes; name: for messages. Throws
// Fault.
void launch(std::string name, const void* kernel, const LaunchSize& size, cudaStream_t stream,
            std::function<void()> body);

// Names of all kernels launched so far in this process.
std::set<std::string> launched_kernels();

// Does what a stream holds back; for the fake runtime API.
void enqueue(cudaStream_t stream, std::function<void()> work);

// The limit of dynamic shared memory of a kernel: 48 KB unless cudaFuncSetAttribute has raised it.
std::size_t dynamic_shared_limit(const void* kernel);
// Most of static and dynamic shared memory together: what the device has, for kernels with a limit of their own.
std::size_t whole_shared_limit(const void* kernel);

}  // namespace polaron::cuda::emulation

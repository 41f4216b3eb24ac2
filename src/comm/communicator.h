// Processes that train together. One implementation for a single process (here), MPI on CPUs and NCCL on GPUs later;
// nothing above asks which. All calls are collective: every process makes the same calls in the same order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/device.h"
#include "backend/tensor.h"

namespace polaron {

// A contiguous piece of device memory that exists on every process and that one process owns.
struct Segment {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t elements = 0;
  int owner = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Each segment becomes, on its owner, the sum over all processes; elsewhere its content is unspecified afterwards. In
  // place, queued on `stream`: gradients of a layer whose backward pass has finished travel while the next one
  // computes.
  virtual void reduce_to_owners(Stream& stream, std::span<const Segment> segments) = 0;
  // Each segment becomes the owner's on every process (updated parameters, or the factors of a low-rank update).
  virtual void gather_from_owners(Stream& stream, std::span<const Segment> segments) = 0;
  // n fp64 values in device memory become their sums over all processes, in rank order (loss, sums of squares).
  virtual void sum(Stream& stream, double* device_values, std::int64_t n) = 0;

  // Host side, blocking.
  virtual double sum_host(double value) = 0;
  virtual void broadcast_host(void* data, std::int64_t bytes, int root) = 0;
  virtual void barrier() = 0;
};

std::unique_ptr<Communicator> make_single_process_communicator();

}  // namespace polaron

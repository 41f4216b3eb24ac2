// Transfers between the devices of several processes, as a backend's own library makes them (NCCL between GPUs). What
// they mean is said where they are used: comm/communicator.h. All calls are collective: every process makes the same
// ones in the same order.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "backend/device.h"
#include "backend/tensor.h"

namespace polaron {

// A contiguous piece of device memory that exists on every process and that one process owns.
struct Segment {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t elements = 0;
  int owner = 0;
  std::int64_t bytes() const { return elements * static_cast<std::int64_t>(size_of(dtype)); }
};

class Collectives {
 public:
  virtual ~Collectives() = default;

  // As the Communicator's of the same names. The first three return at once.
  virtual void reduce_to_owners(Stream& stream, std::span<const Segment> segments) = 0;
  virtual void gather_from_owners(Stream& stream, std::span<const Segment> segments) = 0;
  virtual void sum_in_place(Stream& stream, float* device_values, std::int64_t n) = 0;
  virtual void finish(Stream& stream) = 0;
  virtual void sum(Stream& stream, double* device_values, std::int64_t n) = 0;

  // What has gone wrong on the way since they were made, as a message; empty: nothing. Another thread than that of the
  // other calls may ask, while they run.
  virtual std::string failure() = 0;
};

// What the processes that belong together are known by; one of them draws it, all give it.
using CollectivesId = std::array<char, 128>;

// A backend's library for them. All functions throw Error(Exit::device).
struct CollectivesLibrary {
  void (*open)() = nullptr;              // does nothing where the library can be used
  CollectivesId (*draw_id)() = nullptr;  // called by process 0
  // Collective; the caller owns what it returns, which the device must outlive.
  Collectives* (*make)(Device& device, const CollectivesId& id, int rank, int processes) = nullptr;
};

}  // namespace polaron

// Processes that train together. One implementation for a single process, one on MPI for CPUs, one for devices with
// memory of their own; nothing above asks which. All calls are collective: every process makes the same calls in the
// same order.
//
// Transfers are begun and finished apart, so that gradients of a layer whose backward pass is done travel while the
// next one computes: reduce_to_owners, gather_from_owners and sum_in_place return at once; the memory they name is
// theirs until finish() of the same stream.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "backend/collectives.h"
#include "backend/device.h"
#include "base/error.h"

namespace polaron {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Processes on this machine, this one included, and the number of this one among them.
  virtual int local_size() const = 0;
  virtual int local_rank() const = 0;

  // Each segment (fp32) becomes, on its owner, the sum over all processes; elsewhere its content is unspecified
  // afterwards.
  virtual void reduce_to_owners(Stream& stream, std::span<const Segment> segments) = 0;
  // Each segment becomes the owner's on every process (updated parameters, or the factors of a low-rank update).
  virtual void gather_from_owners(Stream& stream, std::span<const Segment> segments) = 0;
  // n fp32 values become, on every process, their sums over all of them: the same bits everywhere.
  virtual void sum_in_place(Stream& stream, float* device_values, std::int64_t n) = 0;
  // Work queued on `stream` from now on sees what the transfers begun so far bring.
  virtual void finish(Stream& stream) = 0;

  // n fp64 values in device memory become their sums over all processes, in rank order (loss, sums of squares).
  // Complete for work queued on `stream` afterwards.
  virtual void sum(Stream& stream, double* device_values, std::int64_t n) = 0;

  // Host side, blocking, in the order of the calls.
  virtual void sum_host(std::span<double> values) = 0;
  virtual void sum_local(std::span<double> values) = 0;  // over the processes of this machine
  virtual void broadcast_host(void* data, std::int64_t bytes, int root) = 0;
  // Host memory from `from` to rank 0; nothing for the others to do, who may leave the call out.
  virtual void send_to_root(const void* data, std::int64_t bytes) = 0;
  virtual void receive_at_root(void* data, std::int64_t bytes, int from) = 0;
  virtual void barrier() = 0;

  // Bytes of segments that this process has sent for sums elsewhere or received from their owners, since the start.
  // (sum_in_place counts as both.) Summed over the processes that is what polaron plan predicts; scalars are not
  // counted.
  virtual std::int64_t bytes_moved() const = 0;

  // Ends all processes because this one cannot go on: prints `message` and exits with `code`, everywhere. Where all
  // fail alike only rank 0's message is seen.
  [[noreturn]] virtual void fail(const std::string& message, Exit code) = 0;
};

std::unique_ptr<Communicator> make_single_process_communicator();

// MPI where the process was started by mpirun, srun or the like, else the single process. Error(Exit::device) where it
// was, and this build has no MPI. At most one at a time.
std::unique_ptr<Communicator> make_communicator();

// How many processes of this machine use this process's device (on CPUs: all that compute on it). Collective.
int processes_on(Communicator& processes, const DeviceInfo& device);

// For a device whose memory the host cannot see: what is on the host goes on through `processes`, device memory through
// `library` (null: there is none). Where that cannot be used, or processes share a device, device memory is staged: it
// travels through host memory and MPI, which is said in a warning. Null on the CPU, where `processes` alone
// serves. Collective. Device and `processes` must outlive it. Error(Exit::device) on all processes where some have a
// device and some compute on the CPU.
std::unique_ptr<Communicator> make_device_communicator(Communicator& processes, Device& device,
                                                       const CollectivesLibrary* library);

}  // namespace polaron

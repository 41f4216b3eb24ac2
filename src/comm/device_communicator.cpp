#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/log.h"
#include "comm/staging.h"

namespace polaron {
namespace {

// Asks from time to time whether a transfer has failed and ends all processes then: who waits for the device would wait
// for ever.
class Watch {
 public:
  Watch(Communicator& processes, Collectives& watched)
      : thread_([this, &processes, &watched] { watch(processes, watched); }) {}
  ~Watch() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  bool stopped_within(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, time, [this] { return stop_; });
  }

  void watch(Communicator& processes, Collectives& watched) {
    while (!stopped_within(std::chrono::milliseconds(200))) {
      const std::string failure = watched.failure();
      if (failure.empty()) continue;
      // A process that is gone shows as a failure of the others: the one that knows why speaks first, if it still can.
      if (stopped_within(std::chrono::seconds(3))) return;
      processes.fail(failure, Exit::device);
    }
  }

  std::mutex mutex_;  // guards stop_
  std::condition_variable changed_;
  bool stop_ = false;
  std::thread thread_;  // last: what it uses exists before it
};

// Host memory through the processes' own communicator, device memory through collectives.
class DeviceCommunicator final : public Communicator {
 public:
  DeviceCommunicator(Communicator& processes, std::unique_ptr<Collectives> collectives)
      : processes_(processes), collectives_(std::move(collectives)), watch_(processes, *collectives_) {}

  int rank() const override { return processes_.rank(); }
  int size() const override { return processes_.size(); }
  int local_size() const override { return processes_.local_size(); }
  int local_rank() const override { return processes_.local_rank(); }

  void reduce_to_owners(Stream& stream, std::span<const Segment> segments) override {
    collectives_->reduce_to_owners(stream, segments);
    count(segments);
  }
  void gather_from_owners(Stream& stream, std::span<const Segment> segments) override {
    collectives_->gather_from_owners(stream, segments);
    count(segments);
  }
  void sum_in_place(Stream& stream, float* values, std::int64_t n) override {
    collectives_->sum_in_place(stream, values, n);
    if (rank() != 0) moved_ += 2 * n * static_cast<std::int64_t>(sizeof(float));
  }
  void finish(Stream& stream) override { collectives_->finish(stream); }
  void sum(Stream& stream, double* values, std::int64_t n) override { collectives_->sum(stream, values, n); }

  void sum_host(std::span<double> values) override { processes_.sum_host(values); }
  void sum_local(std::span<double> values) override { processes_.sum_local(values); }
  void broadcast_host(void* data, std::int64_t bytes, int root) override {
    processes_.broadcast_host(data, bytes, root);
  }
  void send_to_root(const void* data, std::int64_t bytes) override { processes_.send_to_root(data, bytes); }
  void receive_at_root(void* data, std::int64_t bytes, int from) override {
    processes_.receive_at_root(data, bytes, from);
  }
  void barrier() override { processes_.barrier(); }
  std::int64_t bytes_moved() const override { return moved_; }
  [[noreturn]] void fail(const std::string& message, Exit code) override {
    processes_.fail(message, code);
    std::abort();  // the compiler does not know that no implementation returns
  }

 private:
  void count(std::span<const Segment> segments) {
    for (const Segment& segment : segments) moved_ += segment.owner != rank() ? segment.bytes() : 0;
  }

  Communicator& processes_;
  std::unique_ptr<Collectives> collectives_;
  std::int64_t moved_ = 0;
  Watch watch_;  // last: it ends before what it watches
};

double total(Communicator& processes, double value) {
  processes.sum_host(std::span(&value, 1));
  return value;
}

// On all processes what the first of them says that says anything.
std::string first_said(Communicator& processes, std::string text) {
  std::vector<double> sizes(static_cast<std::size_t>(processes.size()), 0.0);
  sizes[static_cast<std::size_t>(processes.rank())] = static_cast<double>(text.size());
  processes.sum_host(sizes);
  for (int rank = 0; rank < processes.size(); ++rank) {
    const double size = sizes[static_cast<std::size_t>(rank)];
    if (size == 0) continue;
    text.resize(static_cast<std::size_t>(size));
    processes.broadcast_host(text.data(), static_cast<std::int64_t>(text.size()), rank);
    return text;
  }
  return {};
}

// What an attempt says that fails; empty where it succeeds.
template <class Attempt>
std::string refusal_of(Attempt&& attempt) {
  try {
    attempt();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

// Who uses the same device of one machine; empty: everybody has one for itself.
std::string sharing(Communicator& processes, const DeviceInfo& device) {
  const int users = processes_on(processes, device);
  return first_said(
      processes,
      users > 1 ? fmt::format("{} processes share the device {} {}", users, device.name, device.address) : "");
}

// Null where the library cannot be used, with the reason, which is the same on all processes.
std::unique_ptr<Collectives> make_collectives(Communicator& processes, Device& device,
                                              const CollectivesLibrary& library, std::string& why_not) {
  why_not = first_said(processes, refusal_of([&] { library.open(); }));
  if (!why_not.empty()) return nullptr;
  CollectivesId id{};
  why_not = first_said(processes, refusal_of([&] {
                         if (processes.rank() == 0) id = library.draw_id();
                       }));
  if (!why_not.empty()) return nullptr;
  processes.broadcast_host(id.data(), static_cast<std::int64_t>(id.size()), 0);
  std::unique_ptr<Collectives> made;
  why_not = first_said(processes,
                       refusal_of([&] { made.reset(library.make(device, id, processes.rank(), processes.size())); }));
  return why_not.empty() ? std::move(made) : nullptr;
}

}  // namespace

int processes_on(Communicator& processes, const DeviceInfo& device) {
  // 52 bits of FNV-1a of the address: a double holds them.
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char c : device.address) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  std::vector<double> devices(static_cast<std::size_t>(processes.local_size()), 0.0);
  const auto ours = static_cast<double>(hash >> 12U);
  devices[static_cast<std::size_t>(processes.local_rank())] = ours;
  processes.sum_local(devices);
  return static_cast<int>(std::count(devices.begin(), devices.end(), ours));
}

std::unique_ptr<Communicator> make_device_communicator(Communicator& processes, Device& device,
                                                       const CollectivesLibrary* library) {
  const DeviceInfo info = device.info();
  const bool on_host = info.kind == "cpu";
  // Started alone by mpirun: there is nothing to do, but MPI's would look at the memory all the same.
  if (processes.size() == 1) return on_host ? nullptr : make_single_process_communicator();
  const auto on_hosts = static_cast<int>(total(processes, on_host ? 1 : 0));
  if (on_hosts == processes.size()) return nullptr;
  if (on_hosts > 0) {
    throw Error(Exit::device,
                fmt::format("{} of {} processes compute on the CPU and the others on a device; process {} uses {}. "
                            "Start as many as there are devices, or ask for one kind by --device.",
                            on_hosts, processes.size(), processes.rank(), info.kind));
  }
#ifdef POLARON_HAVE_MPI
  std::string why = sharing(processes, info);
  if (why.empty() && library == nullptr) why = "this backend has no library for transfers between devices";
  if (why.empty()) {
    std::unique_ptr<Collectives> collectives = make_collectives(processes, device, *library, why);
    if (collectives != nullptr) return std::make_unique<DeviceCommunicator>(processes, std::move(collectives));
  }
  log::warn(
      fmt::format("{}. Gradients and weights travel through host memory and MPI instead: right, but slow. Start as "
                  "many processes as there are GPUs, with NCCL where the loader finds it.",
                  why));
  return std::make_unique<DeviceCommunicator>(processes, make_staging(processes, device));
#else
  (void)library;
  throw std::logic_error("several processes without MPI");
#endif
}

}  // namespace polaron

// Not run on several GPUs so far: the tests use a stand-in for NCCL on the emulated runtime.
#include "cuda/collectives.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>

#include "cuda/device.h"
#include "cuda/nccl.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 128;

// sums[i] = gathered[0][i] + gathered[1][i] + ...: in rank order, so that all processes have the same bits.
__global__ void sum_ranks(const double* gathered, int ranks, std::int64_t n, double* sums) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  double sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += gathered[rank * n + i];
  sums[i] = sum;
}

// Throws Error(Exit::device) unless NCCL's call has succeeded.
void check(const Nccl& nccl, Nccl::Result result, const char* call) {
  if (result == Nccl::Result::success) return;
  const std::string details = nccl.get_last_error(nullptr);
  throw Error(Exit::device, std::string("NCCL: ") + call + " failed: " + nccl.get_error_string(result) +
                                (details.empty() ? "" : " (" + details + ")") + ". NCCL_DEBUG=INFO makes it say more.");
}

// Transfers have a stream of their own: it waits for what the caller's stream holds so far and the caller's waits for
// it in finish(), so that the backward pass goes on meanwhile and the host never waits.
//
// Sums go to one process (ncclReduce), which adds in the order of the ring; the sum for all is that and a broadcast, so
// that all have the same bits whatever NCCL does inside an all-reduce. On a ring both together cost what that costs.
class NcclCollectives final : public Collectives {
 public:
  NcclCollectives(Device& device, const CollectivesId& id, int rank, int processes)
      : nccl_(open_nccl()),
        processes_(processes),
        stream_(device.make_stream()),
        begun_(device.make_event()),
        done_(device.make_event()),
        gathered_(device, static_cast<std::size_t>(kSums * processes) * sizeof(double)) {
    Nccl::UniqueId unique{};
    static_assert(sizeof(unique.internal) == sizeof(CollectivesId));
    std::memcpy(unique.internal, id.data(), id.size());
    check(nccl_, nccl_.comm_init_rank(&comm_, processes, unique, rank), "ncclCommInitRank");
  }

  // Where a process fails nobody may answer any more: what is under way is given up instead of waited for.
  ~NcclCollectives() override {
    bool giving_up = std::uncaught_exceptions() > 0 || !failure().empty();
    try {
      if (!giving_up) stream_->synchronize();
    } catch (const Error&) {
      giving_up = true;
    }
    const std::lock_guard lock(mutex_);
    giving_up ? nccl_.comm_abort(comm_) : nccl_.comm_destroy(comm_);
    comm_ = nullptr;
  }
  NcclCollectives(const NcclCollectives&) = delete;
  NcclCollectives& operator=(const NcclCollectives&) = delete;

  void reduce_to_owners(Stream& stream, std::span<const Segment> segments) override {
    follow(stream);
    const Group group(nccl_);
    for (const Segment& s : segments) reduce(s);
    group.end();
  }

  void gather_from_owners(Stream& stream, std::span<const Segment> segments) override {
    follow(stream);
    const Group group(nccl_);
    for (const Segment& s : segments) broadcast(s);
    group.end();
  }

  void sum_in_place(Stream& stream, float* values, std::int64_t n) override {
    follow(stream);
    const Segment all{values, DType::f32, n, 0};
    reduce(all);
    broadcast(all);
  }

  void finish(Stream& stream) override {
    throw_failure();
    done_->record(*stream_);
    done_->make_wait(stream);
  }

  void sum(Stream& stream, double* values, std::int64_t n) override {
    follow(stream);
    for (std::int64_t first = 0; first < n; first += kSums) {
      const std::int64_t count = std::min(kSums, n - first);
      check(nccl_,
            nccl_.all_gather(values + first, gathered_.data(), static_cast<std::size_t>(count), Nccl::Type::float64,
                             comm_, handle_of(*stream_)),
            "ncclAllGather");
      const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
      launch<sum_ranks>(Grid{dim3(blocks), dim3(kThreads), handle_of(*stream_)}, gathered_.as<double>(), processes_,
                        count, values + first);
    }
    finish(stream);
  }

  std::string failure() override {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return {};
    auto error = Nccl::Result::success;
    const Nccl::Result asked = nccl_.comm_get_async_error(comm_, &error);
    if (asked != Nccl::Result::success) error = asked;
    if (error == Nccl::Result::success || error == Nccl::Result::in_progress) return {};
    const std::string details = nccl_.get_last_error(comm_);
    return std::string("NCCL: a transfer between GPUs has failed: ") + nccl_.get_error_string(error) +
           (details.empty() ? "" : " (" + details + ")") +
           ". Another process may have ended; else look at the network and the GPUs: NCCL_DEBUG=INFO makes it say "
           "more.";
  }

 private:
  static constexpr std::int64_t kSums = 256;  // numbers of fp64 that are summed at a time

  // Calls between are one launch. Ended where an exception passes as well: NCCL counts them by thread.
  class Group {
   public:
    explicit Group(const Nccl& nccl) : nccl_(nccl), exceptions_(std::uncaught_exceptions()) {
      check(nccl, nccl.group_start(), "ncclGroupStart");
    }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;
    ~Group() {
      if (std::uncaught_exceptions() > exceptions_ && !ended_) nccl_.group_end();
    }
    void end() const {
      ended_ = true;
      check(nccl_, nccl_.group_end(), "ncclGroupEnd");
    }

   private:
    const Nccl& nccl_;
    int exceptions_;
    mutable bool ended_ = false;
  };

  void follow(Stream& stream) {
    throw_failure();
    begun_->record(stream);
    begun_->make_wait(*stream_);
  }

  void throw_failure() {
    const std::string message = failure();
    if (!message.empty()) throw Error(Exit::device, message);
  }

  void reduce(const Segment& s) {
    if (s.elements == 0) return;
    check(nccl_,
          nccl_.reduce(s.data, s.data, static_cast<std::size_t>(s.elements), Nccl::Type::float32, Nccl::Reduction::sum,
                       s.owner, comm_, handle_of(*stream_)),
          "ncclReduce");
  }

  // Bytes: bf16 and fp32 alike.
  void broadcast(const Segment& s) {
    if (s.elements == 0) return;
    check(nccl_,
          nccl_.broadcast(s.data, s.data, static_cast<std::size_t>(s.bytes()), Nccl::Type::uint8, s.owner, comm_,
                          handle_of(*stream_)),
          "ncclBroadcast");
  }

  Nccl nccl_;
  int processes_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Event> begun_, done_;
  DeviceBuffer gathered_;  // of the sums of fp64: allocated here, because that waits for the device
  std::mutex mutex_;       // of comm_'s life: failure() is called by another thread
  Nccl::Comm comm_ = nullptr;
};

}  // namespace

CollectivesLibrary nccl_collectives() {
  CollectivesLibrary library;
  library.open = [] { open_nccl(); };
  library.draw_id = [] {
    const Nccl nccl = open_nccl();
    Nccl::UniqueId unique{};
    check(nccl, nccl.get_unique_id(&unique), "ncclGetUniqueId");
    CollectivesId id{};
    std::memcpy(id.data(), unique.internal, id.size());
    return id;
  };
  library.make = [](Device& device, const CollectivesId& id, int rank, int processes) -> Collectives* {
    return new NcclCollectives(device, id, rank, processes);
  };
  return library;
}

}  // namespace polaron::cuda

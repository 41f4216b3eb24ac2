#ifdef POLARON_HAVE_MPI

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/log.h"
#include "comm/launch.h"

namespace polaron {
namespace {

// One thread makes all MPI calls, in the order in which they were asked for, beside the threads that compute.
// Memory must be the host's. Collectives run in pieces of about 1 MB in place, several at a time: on one machine that
// is twice as fast as one call on 100 MB.
class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    int provided = MPI_THREAD_SINGLE;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
      throw Error(Exit::device, "MPI_Init_thread failed: the launcher and the MPI library do not fit each other?");
    }
    if (provided < MPI_THREAD_SERIALIZED) {
      throw Error(Exit::device, "this MPI library lets no second thread communicate (MPI_THREAD_SERIALIZED).");
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node_);
    MPI_Comm_size(node_, &local_size_);
    MPI_Comm_rank(node_, &local_rank_);
    thread_ = std::thread([this] { work(); });
  }

  ~MpiCommunicator() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
    MPI_Comm_free(&node_);
    MPI_Finalize();
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }
  int local_rank() const override { return local_rank_; }

  void reduce_to_owners(Stream& stream, std::span<const Segment> segments) override {
    stream.synchronize();
    begin([this, list = std::vector<Segment>(segments.begin(), segments.end())] {
      for (const Segment& segment : list) {
        if (segment.owner != rank_) moved_ += segment.bytes();
        for_pieces(segment, [&](void* data, int elements, MPI_Request* request) {
          const bool here = segment.owner == rank_;
          MPI_Ireduce(here ? MPI_IN_PLACE : data, here ? data : nullptr, elements, MPI_FLOAT, MPI_SUM, segment.owner,
                      MPI_COMM_WORLD, request);
        });
      }
      drain();
    });
  }

  void gather_from_owners(Stream& stream, std::span<const Segment> segments) override {
    stream.synchronize();
    begin([this, list = std::vector<Segment>(segments.begin(), segments.end())] {
      for (const Segment& segment : list) {
        if (segment.owner != rank_) moved_ += segment.bytes();
        const MPI_Datatype type = segment.dtype == DType::bf16 ? MPI_UINT16_T : MPI_FLOAT;
        for_pieces(segment, [&](void* data, int elements, MPI_Request* request) {
          MPI_Ibcast(data, elements, type, segment.owner, MPI_COMM_WORLD, request);
        });
      }
      drain();
    });
  }

  void sum_in_place(Stream& stream, float* values, std::int64_t n) override {
    stream.synchronize();
    begin([this, values, n] {
      const Segment all{values, DType::f32, n, 0};
      // Reduced to rank 0 and sent from there: an all-reduce may round differently on different processes.
      moved_ += rank_ == 0 ? 0 : 2 * all.bytes();
      for_pieces(all, [&](void* data, int elements, MPI_Request* request) {
        MPI_Ireduce(rank_ == 0 ? MPI_IN_PLACE : data, rank_ == 0 ? data : nullptr, elements, MPI_FLOAT, MPI_SUM, 0,
                    MPI_COMM_WORLD, request);
      });
      drain();
      for_pieces(all, [&](void* data, int elements, MPI_Request* request) {
        MPI_Ibcast(data, elements, MPI_FLOAT, 0, MPI_COMM_WORLD, request);
      });
      drain();
    });
  }

  void finish(Stream& /*stream*/) override { wait(); }

  void sum(Stream& stream, double* values, std::int64_t n) override {
    stream.synchronize();
    sum_host(std::span(values, static_cast<std::size_t>(n)));
  }

  void sum_host(std::span<double> values) override { sum_over(MPI_COMM_WORLD, size_, values); }
  void sum_local(std::span<double> values) override { sum_over(node_, local_size_, values); }

  void broadcast_host(void* data, std::int64_t bytes, int root) override {
    for_host_pieces(data, bytes,
                    [&](void* piece, int count) { MPI_Bcast(piece, count, MPI_BYTE, root, MPI_COMM_WORLD); });
  }
  void send_to_root(const void* data, std::int64_t bytes) override {
    for_host_pieces(const_cast<void*>(data), bytes,
                    [&](void* piece, int count) { MPI_Send(piece, count, MPI_BYTE, 0, kTag, MPI_COMM_WORLD); });
  }
  void receive_at_root(void* data, std::int64_t bytes, int from) override {
    for_host_pieces(data, bytes, [&](void* piece, int count) {
      MPI_Recv(piece, count, MPI_BYTE, from, kTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    });
  }

  void barrier() override {
    begin([] { MPI_Barrier(MPI_COMM_WORLD); });
    wait();
  }

  std::int64_t bytes_moved() const override { return moved_; }

  // MPI_Abort may be called beside the communicating thread, which may be waiting for a process that is gone.
  [[noreturn]] void fail(const std::string& message, Exit code) override {
    // What fails everywhere alike is for rank 0 to say; the others leave it the time to end them.
    if (rank_ != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    log::error(rank_ == 0 ? message : fmt::format("process {} of {}: {}", rank_, size_, message));
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));  // some MPI_Abort return
  }

 private:
  static constexpr std::int64_t kPieceBytes = 1 << 20;
  static constexpr std::size_t kInFlight = 32;
  static constexpr int kTag = 1;

  // Starts start(data, elements, request) for each piece of the segment; waits where too many are under way.
  template <class Start>
  void for_pieces(const Segment& segment, Start&& start) {
    const auto size = static_cast<std::int64_t>(size_of(segment.dtype));
    const std::int64_t most = kPieceBytes / size;
    for (std::int64_t first = 0; first < segment.elements; first += most) {
      if (requests_.size() == kInFlight) drain();
      requests_.push_back(MPI_REQUEST_NULL);
      start(static_cast<std::byte*>(segment.data) + first * size,
            static_cast<int>(std::min(most, segment.elements - first)), &requests_.back());
    }
  }

  void sum_over(MPI_Comm processes, int size, std::span<double> values) {
    begin([=] {
      const auto ranks = static_cast<std::size_t>(size);
      std::vector<double> all(values.size() * ranks);
      const int count = static_cast<int>(values.size());
      MPI_Allgather(values.data(), count, MPI_DOUBLE, all.data(), count, MPI_DOUBLE, processes);
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = 0;
        for (std::size_t r = 0; r < ranks; ++r) values[i] += all[r * values.size() + i];
      }
    });
    wait();
  }

  template <class Call>
  void for_host_pieces(void* data, std::int64_t bytes, Call&& call) {
    begin([&] {
      constexpr std::int64_t kMost = 1 << 28;  // MPI counts in int
      for (std::int64_t first = 0; first < bytes; first += kMost) {
        call(static_cast<std::byte*>(data) + first, static_cast<int>(std::min(kMost, bytes - first)));
      }
    });
    wait();
  }

  // Waits for the requests under way. Sleeps between looks while the others still compute and so does this process:
  // spinning would take a core from the backward pass.
  void drain() {
    int done = 0;
    for (int looks = 0;; ++looks) {
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
      if (done != 0) break;
      if (looks > 16 && !waited_for_) std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (looks > 16 && waited_for_) std::this_thread::yield();
    }
    requests_.clear();
  }

  void begin(std::function<void()> job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
      ++begun_;
    }
    changed_.notify_all();
  }

  void wait() {
    std::unique_lock lock(mutex_);
    waited_for_ = true;
    idle_.wait(lock, [this] { return finished_ == begun_; });
    waited_for_ = false;
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
      ++finished_;
      idle_.notify_all();
    }
  }

  MPI_Comm node_ = MPI_COMM_NULL;  // the processes of this machine
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::vector<MPI_Request> requests_;  // of the communicating thread
  std::atomic<std::int64_t> moved_ = 0;
  std::atomic<bool> waited_for_ = false;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_, idle_;
  std::deque<std::function<void()>> jobs_;
  std::int64_t begun_ = 0, finished_ = 0;
  bool stop_ = false;
  std::thread thread_;  // last: everything it uses exists before and after it
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator() { return std::make_unique<MpiCommunicator>(); }

}  // namespace polaron

#endif

#include "comm/staging.h"

#ifdef POLARON_HAVE_MPI

#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <exception>
#include <thread>
#include <vector>

namespace polaron {
namespace {

// Pieces of 1 MB, each in a slot of pinned host memory: copied down, summed or broadcast by MPI in place, copied up.
// Two streams of its own copy, so that the device computes meanwhile. Everything is done by the thread that makes the
// calls, a little whenever it makes one and the rest in finish(): it waits there, long before the device has come to
// the end of the backward pass. MPI sums pieces of the same size in the same way as MpiCommunicator: the bits are the
// same.
class Staging final : public Collectives {
 public:
  Staging(Communicator& processes, Device& device)
      : processes_(processes), device_(device), down_(device.make_stream()), up_(device.make_stream()) {
    for (Slot& slot : slots_) slot.copied = device.make_event();
    memory_ = static_cast<std::byte*>(device.allocate_host(kSlots * kPieceBytes));
    for (std::size_t i = 0; i < kSlots; ++i) slots_[i].host = memory_ + i * kPieceBytes;
    // Apart from the world, in which another thread communicates: the order of calls is that of this object alone. The
    // two threads take turns, as MPI_THREAD_SERIALIZED asks: whoever has work done by the other waits for it.
    MPI_Comm_dup(MPI_COMM_WORLD, &group_);
  }

  ~Staging() override {
    // Where a process fails in the middle of a transfer MPI may still write: its memory stays until the process ends.
    if (freed_ != taken_) return;
    try {
      up_->synchronize();
    } catch (const Error&) {
      return;  // a device that has failed has been reported: this must not throw
    }
    device_.release_host(memory_);
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&group_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void reduce_to_owners(Stream& stream, std::span<const Segment> segments) override { add(stream, segments, true); }
  void gather_from_owners(Stream& stream, std::span<const Segment> segments) override { add(stream, segments, false); }

  void sum_in_place(Stream& stream, float* values, std::int64_t n) override {
    // By way of process 0: an all-reduce may round differently on different processes.
    const Segment all{values, DType::f32, n, 0};
    add(stream, std::span(&all, 1), true);
    add(stream, std::span(&all, 1), false);
  }

  void finish(Stream& /*stream*/) override {
    int idle = 0;
    while (!waiting_.empty() || freed_ != taken_) {
      idle = pump() ? 0 : idle + 1;
      // The cores are for other processes that compute, too.
      if (idle > 64) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  void sum(Stream& stream, double* values, std::int64_t n) override {
    std::vector<double> host(static_cast<std::size_t>(n));
    device_.download(stream, host.data(), values, host.size() * sizeof(double));
    stream.synchronize();
    processes_.sum_host(host);
    device_.upload(stream, values, host.data(), host.size() * sizeof(double));
    stream.synchronize();
  }

  std::string failure() override { return {}; }  // MPI ends the processes by itself

 private:
  static constexpr std::int64_t kPieceBytes = 1 << 20;
  static constexpr std::size_t kSlots = 32;

  struct Piece {
    std::byte* device = nullptr;
    DType dtype = DType::f32;
    int elements = 0, owner = 0;
    bool sums = false;             // else a broadcast from the owner
    std::shared_ptr<Event> ready;  // when the device memory may be read and written
    std::size_t bytes() const { return static_cast<std::size_t>(elements) * size_of(dtype); }
  };

  enum class State : std::uint8_t { down, travelling, up, arrived };
  struct Slot {
    Piece piece;
    State state = State::arrived;
    std::byte* host = nullptr;
    std::unique_ptr<Event> copied;  // of the copy down or up
    MPI_Request request = MPI_REQUEST_NULL;
  };

  bool owned(const Piece& piece) const { return piece.owner == processes_.rank(); }
  Slot& slot(std::int64_t number) { return slots_[static_cast<std::size_t>(number) % kSlots]; }

  void add(Stream& stream, std::span<const Segment> segments, bool sums) {
    const std::shared_ptr<Event> ready = device_.make_event();
    ready->record(stream);
    for (const Segment& segment : segments) {
      const auto size = static_cast<std::int64_t>(size_of(segment.dtype));
      const std::int64_t most = kPieceBytes / size;
      for (std::int64_t first = 0; first < segment.elements; first += most) {
        waiting_.push_back({static_cast<std::byte*>(segment.data) + first * size, segment.dtype,
                            static_cast<int>(std::min(most, segment.elements - first)), segment.owner, sums, ready});
      }
    }
    pump();
  }

  // Moves every piece on that can move; whether any did. MPI is given the pieces in the order of the calls, which is
  // the same on all processes; how far each has come may differ.
  bool pump() {
    bool moved = false;
    while (!waiting_.empty() && taken_ - freed_ < static_cast<std::int64_t>(kSlots) && !touched(waiting_.front())) {
      take();
      moved = true;
    }
    for (; given_ < taken_ && downloaded(slot(given_)); ++given_) {
      give(slot(given_));
      moved = true;
    }
    for (std::int64_t i = freed_; i < given_; ++i) moved = advance(slot(i)) || moved;
    for (; freed_ < given_ && slot(freed_).state == State::arrived; ++freed_) slot(freed_).piece.ready.reset();
    return moved;
  }

  // Whether a piece under way has memory in common with this one, which must then wait until that has arrived.
  bool touched(const Piece& piece) {
    for (std::int64_t i = freed_; i < taken_; ++i) {
      const Piece& other = slot(i).piece;
      if (piece.device < other.device + other.bytes() && other.device < piece.device + piece.bytes()) return true;
    }
    return false;
  }

  void take() {
    Slot& s = slot(taken_++);
    s.piece = std::move(waiting_.front());
    waiting_.pop_front();
    s.state = State::down;
    if (!s.piece.sums && !owned(s.piece)) return;
    if (ready_ != s.piece.ready) s.piece.ready->make_wait(*down_);
    ready_ = s.piece.ready;
    device_.download(*down_, s.host, s.piece.device, s.piece.bytes());
    s.copied->record(*down_);
  }

  bool downloaded(const Slot& s) const { return (!s.piece.sums && !owned(s.piece)) || s.copied->finished(); }

  void give(Slot& s) {
    const Piece& p = s.piece;
    if (p.sums) {
      const bool here = owned(p);
      MPI_Ireduce(here ? MPI_IN_PLACE : s.host, here ? s.host : nullptr, p.elements, MPI_FLOAT, MPI_SUM, p.owner,
                  group_, &s.request);
    } else {
      MPI_Ibcast(s.host, static_cast<int>(p.bytes()), MPI_BYTE, p.owner, group_, &s.request);
    }
    s.state = State::travelling;
  }

  bool advance(Slot& s) {
    if (s.state == State::travelling) {
      int done = 0;
      MPI_Test(&s.request, &done, MPI_STATUS_IGNORE);
      if (done == 0) return false;
      const bool comes_up = s.piece.sums == owned(s.piece);  // sums to their owner, broadcasts to all others
      s.state = comes_up ? State::up : State::arrived;
      if (!comes_up) return true;
      s.piece.ready->make_wait(*up_);
      device_.upload(*up_, s.piece.device, s.host, s.piece.bytes());
      s.copied->record(*up_);
      return true;
    }
    if (s.state != State::up || !s.copied->finished()) return false;
    s.state = State::arrived;
    return true;
  }

  Communicator& processes_;
  Device& device_;
  std::unique_ptr<Stream> down_, up_;
  std::shared_ptr<Event> ready_;  // what down_ waits for already
  std::byte* memory_ = nullptr;   // pinned
  std::array<Slot, kSlots> slots_;
  std::deque<Piece> waiting_;  // for a slot
  // Pieces are numbered as they take a slot, and use the slots in turns: how many have taken one, how many MPI has been
  // given, how many have arrived with all before them.
  std::int64_t taken_ = 0, given_ = 0, freed_ = 0;
  MPI_Comm group_ = MPI_COMM_NULL;
};

}  // namespace

std::unique_ptr<Collectives> make_staging(Communicator& processes, Device& device) {
  return std::make_unique<Staging>(processes, device);
}

}  // namespace polaron

#endif

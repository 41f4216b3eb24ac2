#include <cstdlib>

#include "base/log.h"
#include "comm/communicator.h"

namespace polaron {
namespace {

// Alone, every sum is already there and every segment is owned here.
class SingleProcess final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_size() const override { return 1; }
  int local_rank() const override { return 0; }
  void reduce_to_owners(Stream& /*stream*/, std::span<const Segment> /*segments*/) override {}
  void gather_from_owners(Stream& /*stream*/, std::span<const Segment> /*segments*/) override {}
  void sum_in_place(Stream& /*stream*/, float* /*device_values*/, std::int64_t /*n*/) override {}
  void finish(Stream& /*stream*/) override {}
  void sum(Stream& /*stream*/, double* /*device_values*/, std::int64_t /*n*/) override {}
  void sum_host(std::span<double> /*values*/) override {}
  void sum_local(std::span<double> /*values*/) override {}
  void broadcast_host(void* /*data*/, std::int64_t /*bytes*/, int /*root*/) override {}
  void send_to_root(const void* /*data*/, std::int64_t /*bytes*/) override {}
  void receive_at_root(void* /*data*/, std::int64_t /*bytes*/, int /*from*/) override {}
  void barrier() override {}
  std::int64_t bytes_moved() const override { return 0; }
  [[noreturn]] void fail(const std::string& message, Exit code) override {
    log::error(message);
    std::exit(static_cast<int>(code));
  }
};

}  // namespace

std::unique_ptr<Communicator> make_single_process_communicator() { return std::make_unique<SingleProcess>(); }

}  // namespace polaron

#include "comm/communicator.h"

namespace polaron {
namespace {

// Alone, every sum is already there and every segment is owned here.
class SingleProcess final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void reduce_to_owners(Stream& /*stream*/, std::span<const Segment> /*segments*/) override {}
  void gather_from_owners(Stream& /*stream*/, std::span<const Segment> /*segments*/) override {}
  void sum(Stream& /*stream*/, double* /*device_values*/, std::int64_t /*n*/) override {}
  double sum_host(double value) override { return value; }
  void broadcast_host(void* /*data*/, std::int64_t /*bytes*/, int /*root*/) override {}
  void barrier() override {}
};

}  // namespace

std::unique_ptr<Communicator> make_single_process_communicator() { return std::make_unique<SingleProcess>(); }

}  // namespace polaron

#include "train/choices.h"

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/log.h"

namespace polaron {

void settle_choices(Session& session, StepRunner& steps, std::span<const std::byte> stored) {
  Backend& backend = session.backend;
  Communicator& communicator = session.communicator;
  if (!stored.empty()) {
    double refused = backend.set_tuned(stored) ? 0 : 1;  // by any process: what follows is for all or for none
    communicator.sum_host(std::span(&refused, 1));
    if (refused == 0) return;
    log::warn(
        "the checkpoint's choice of GEMM algorithms was made on another device, with other libraries or by another "
        "version of polaron and is made again: results may differ in their last bits from those of a run that went on "
        "there.");
  }
  const bool root = communicator.rank() == 0;
  // Process 0 alone times: kinds of products that only others have get the rule's choice, which a resumed run finds
  // too.
  if (session.config.deterministic || !backend.set_timing(root)) return;
  steps.rehearse(*session.open_loader(0));
  backend.set_timing(false);
  std::vector<std::byte> choices = root ? backend.tuned() : std::vector<std::byte>();
  auto bytes = static_cast<std::int64_t>(choices.size());
  communicator.broadcast_host(&bytes, sizeof(bytes), 0);
  choices.resize(static_cast<std::size_t>(bytes));
  communicator.broadcast_host(choices.data(), bytes, 0);
  if (!backend.set_tuned(choices)) {
    throw Error(Exit::device,
                "the processes run on devices of several models or with several versions of the CUDA libraries: start "
                "them on equal ones, or set deterministic to true.");
  }
}

}  // namespace polaron

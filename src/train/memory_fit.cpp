#include "train/memory_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"

namespace polaron {
namespace {

double in_gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); }

}  // namespace

std::int64_t free_memory(Device& device) { return static_cast<std::int64_t>(device.info().memory_free); }

MemoryFit::MemoryFit(const Config& config, const ParameterTable& table, const Assignment& assignment,
                     const Ownership& ownership, Communicator& communicator, Backend& backend)
    : config_(config),
      table_(table),
      assignment_(assignment),
      ownership_(ownership),
      communicator_(communicator),
      backend_(backend),
      free_(free_memory(backend.device())),
      sharing_(processes_on(communicator, backend.device().info())) {}

std::int64_t MemoryFit::largest(Recompute recompute, std::int64_t bytes) const {
  Config changed = config_;
  changed.training.recompute = recompute;
  return largest_micro_batch(std::move(changed), table_, assignment_, ownership_, communicator_.rank(), backend_,
                             bytes);
}

std::string MemoryFit::what_would_fit(std::int64_t bytes) const {
  if (const std::int64_t count = largest(config_.training.recompute, bytes); count > 0) {
    return fmt::format("training.micro_batch {} would fit", count);
  }
  if (const std::int64_t count = largest(Recompute::block, bytes); count > 0) {
    return fmt::format("training.micro_batch {} would fit with training.recompute \"block\"", count);
  }
  return "Not even training.micro_batch 1 with training.recompute \"block\" would fit: choose a smaller model or more "
         "processes";
}

void MemoryFit::check(const MemoryPlan& memory) const {
  if (free_ <= 0 || memory.total() <= free_ / sharing_) return;
  const std::string each = sharing_ > 1 ? fmt::format(" for each of the {} processes that share it", sharing_) : "";
  throw Error(
      Exit::device,
      fmt::format("the run needs {:.2f} GiB of memory on {}{} (activations {:.2f} GiB), and {:.2f} GiB are free. {}; "
                  "`polaron plan` shows what each part takes.",
                  in_gib(memory.total()), backend_.device().info().name, each, in_gib(memory.activations),
                  in_gib(free_), what_would_fit(free_ / sharing_)));
}

std::int64_t MemoryFit::choose_micro_batch() const {
  std::vector<double> all(static_cast<std::size_t>(communicator_.size()));
  all[static_cast<std::size_t>(communicator_.rank())] =
      static_cast<double>(largest(config_.training.recompute, filled_by_auto(free_ / sharing_)));
  communicator_.sum_host(all);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(*std::min_element(all.begin(), all.end())));
}

std::string MemoryFit::note(std::int64_t micro_batch) const {
  const bool whole = micro_batch == config_.training.batch / communicator_.size();
  return fmt::format("training.micro_batch \"auto\": {}, {} into {:.2f} GiB of free memory", micro_batch,
                     whole ? "all of a process's part of the batch, fits" : "the most that fit",
                     in_gib(free_ / sharing_));
}

}  // namespace polaron

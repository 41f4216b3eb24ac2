#include "train/step.h"

#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

#include "optim/schedule.h"

namespace polaron {

StepRunner::StepRunner(Session& session)
    : session_(session),
      result_(session.backend.device(), sizeof(Result)),
      host_results_(static_cast<Result*>(session.backend.device().allocate_host(2 * sizeof(Result)))),
      targets_(static_cast<double>(session.config.training.batch * session.config.training.sequence_length)) {
  const auto* const gradients = session.gradients.as<float>();
  const auto range = [&](std::int64_t offset, std::int64_t elements) {
    return std::span<const float>(gradients + offset, static_cast<std::size_t>(elements));
  };
  const Communicator& communicator = session.communicator;
  if (communicator.size() == 1) {
    norm_ranges_.push_back(range(0, session.table.stored_elements()));
    return;
  }
  reductions_.resize(static_cast<std::size_t>(session.config.model.layers) + 2);
  for (const OwnedRange& owned : session.optimizer->ownership().reduced()) {
    reductions_[static_cast<std::size_t>(owned.layer + 1)].push_back(
        {session.gradients.as<float>() + owned.offset, DType::f32, owned.elements, owned.owner});
    if (owned.owner == communicator.rank()) norm_ranges_.push_back(range(owned.offset, owned.elements));
  }
  // Gradients that stay where they are enter each with its own squares.
  for (const OwnedRange& local : session.optimizer->ownership().local()) {
    norm_ranges_.push_back(range(local.offset, local.elements));
  }
}

StepRunner::~StepRunner() {
  try {
    session_.stream->synchronize();
  } catch (...) {  // a device that failed writes nothing any more, and the failure has been told
  }
  session_.backend.device().release_host(host_results_);
}

void StepRunner::begin(std::int64_t step) {
  session_.uploader->set_progress(static_cast<double>(step) / static_cast<double>(session_.config.training.steps));
  session_.backend.device().zero(*session_.stream, result_.data(), sizeof(Result));
}

bool StepRunner::adds_previous(std::int64_t step) const {
  const std::int64_t dropped = session_.config.quirks.previous_batch_dropped_every;
  return !previous_.empty() && (dropped == 0 || step % dropped != 0);
}

void StepRunner::remember(Loader& loader) {
  previous_.clear();
  for (std::int64_t i = 0; i < loader.micro_batches_per_global_batch(); ++i) previous_.push_back(loader.next());
}

void StepRunner::rehearse(Loader& loader) {
  begin(0);  // with a closed gate
  micro_batch(loader.next(), false, false, true);
  if (loader.micro_batches_per_global_batch() > 1) micro_batch(loader.next(), true, false, true);
  session_.optimizer->step(*session_.stream, 0, 0.0, {&result_.as<Result>()->clip, &result_.as<Result>()->apply});
  session_.stream->synchronize();
}

void StepRunner::micro_batch(Batch batch, bool accumulate, bool last, bool counted) {
  const DeviceBatch on_device = session_.uploader->upload(*session_.stream, std::move(batch));
  // The loss is the mean over the global batch, so each micro-batch's sum is divided by all of its targets.
  session_.model->forward_backward(
      *session_.stream, on_device, static_cast<float>(1.0 / targets_), accumulate,
      counted ? &result_.as<Result>()->loss_sum : &result_.as<Result>()->previous_loss_sum, [&](int layer) {
        if (!last || reductions_.empty()) return;
        session_.communicator.reduce_to_owners(*session_.stream, reductions_[static_cast<std::size_t>(layer + 1)]);
      });
}

void StepRunner::finish(std::int64_t step, double loss_limit) {
  Stream& stream = *session_.stream;
  ElementwiseOps& ops = session_.backend.elementwise();
  auto* const result = result_.as<Result>();
  session_.communicator.finish(stream);
  ops.sum_of_squares(stream, norm_ranges_, &result->sum_of_squares);
  static_assert(offsetof(Result, sum_of_squares) == sizeof(double));
  session_.communicator.sum(stream, &result->loss_sum, 2);
  ops.decide(stream, &result->sum_of_squares, &result->loss_sum, 1.0 / targets_,
             static_cast<float>(session_.config.training.gradient_clip), loss_limit, &result->norm, &result->clip,
             &result->apply);
  const double factor = lr_factor(session_.config.schedule, step, session_.config.training.steps);
  session_.optimizer->step(stream, step, factor, {&result->clip, &result->apply});

  Pending pending;
  pending.outcome.step = step;
  pending.outcome.lr_factor = factor;
  Result* const host = host_results_ + step % 2;
  pending.host = host;
  pending.done = session_.backend.device().make_event();
  session_.backend.device().download(stream, host, result, sizeof(Result));
  pending.done->record(stream);
  pending_.push_back(std::move(pending));
}

std::optional<StepOutcome> StepRunner::outcome(bool wait) {
  if (pending_.empty()) return std::nullopt;
  Pending& oldest = pending_.front();
  if (!oldest.done->finished()) {
    const bool may_wait_later = pending_.size() < 2 && session_.config.training.skip_loss_spikes == 0;
    if (!wait && may_wait_later) return std::nullopt;
    oldest.done->synchronize();
  }
  StepOutcome outcome = oldest.outcome;
  outcome.loss = oldest.host->loss_sum / targets_;
  outcome.gradient_norm = oldest.host->norm;
  outcome.applied = oldest.host->apply != 0;
  pending_.pop_front();
  return outcome;
}

}  // namespace polaron

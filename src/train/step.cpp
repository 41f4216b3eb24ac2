#include "train/step.h"

#include <cmath>
#include <span>
#include <utility>

#include "optim/schedule.h"

namespace polaron {

StepRunner::StepRunner(Session& session)
    : session_(session),
      result_(session.backend.device(), sizeof(Result)),
      targets_(static_cast<double>(session.config.training.batch * session.config.training.sequence_length)) {}

void StepRunner::begin() { session_.backend.device().zero(*session_.stream, result_.data(), sizeof(Result)); }

void StepRunner::micro_batch(Batch batch, bool accumulate) {
  const DeviceBatch on_device = session_.uploader->upload(*session_.stream, std::move(batch));
  // The loss is the mean over the global batch, so each micro-batch's sum is divided by all of its targets.
  session_.model->forward_backward(*session_.stream, on_device, static_cast<float>(1.0 / targets_), accumulate,
                                   &result_.as<Result>()->loss_sum, [](int) {});
}

void StepRunner::finish(std::int64_t step, double loss_limit) {
  Stream& stream = *session_.stream;
  ElementwiseOps& ops = session_.backend.elementwise();
  auto* const result = result_.as<Result>();
  session_.communicator->sum(stream, &result->loss_sum, 1);

  const std::span<const float> gradients(session_.gradients.as<float>(),
                                         static_cast<std::size_t>(session_.table.stored_elements()));
  ops.sum_of_squares(stream, std::span(&gradients, 1), &result->sum_of_squares);
  ops.decide(stream, &result->sum_of_squares, &result->loss_sum, 1.0 / targets_,
             static_cast<float>(session_.config.training.gradient_clip), loss_limit, &result->norm, &result->clip,
             &result->apply);
  const double factor = lr_factor(session_.config.schedule, step, session_.config.training.steps);
  session_.optimizer->step(stream, step, factor, {&result->clip, &result->apply});

  Pending pending;
  pending.outcome.step = step;
  pending.outcome.lr_factor = factor;
  pending.host = std::make_unique<Result>();
  pending.done = session_.backend.device().make_event();
  session_.backend.device().download(stream, pending.host.get(), result, sizeof(Result));
  pending.done->record(stream);
  pending_.push_back(std::move(pending));
}

std::optional<StepOutcome> StepRunner::outcome(bool wait) {
  if (pending_.empty()) return std::nullopt;
  Pending& oldest = pending_.front();
  if (!oldest.done->finished()) {
    if (!wait && pending_.size() < 2) return std::nullopt;
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

// Detection of loss spikes: a step whose loss lies far above the recent ones.
#pragma once

#include <cmath>
#include <cstddef>
#include <deque>
#include <limits>
#include <vector>

namespace polaron {

// Mean and deviation of the last 128 losses, those of skipped steps included: where losses stay high, training goes on
// after a while. The limit is known before a step runs, so the device can decide by itself.
class SpikeDetector {
 public:
  // deviations: how many above the mean count as a spike; 0: never.
  SpikeDetector(double deviations, const std::vector<double>& history) : deviations_(deviations) {
    for (const double loss : history) add(loss);
  }

  void add(double loss) {
    losses_.push_back(loss);
    if (losses_.size() > kWindow) losses_.pop_front();
  }

  // The largest loss that is not a spike; infinity until the window is full.
  double limit() const {
    if (deviations_ <= 0 || losses_.size() < kWindow) return std::numeric_limits<double>::infinity();
    double mean = 0;
    for (const double loss : losses_) mean += loss;
    mean /= static_cast<double>(kWindow);
    double variance = 0;
    for (const double loss : losses_) variance += (loss - mean) * (loss - mean);
    return mean + deviations_ * std::sqrt(variance / static_cast<double>(kWindow));
  }

  std::vector<double> history() const { return {losses_.begin(), losses_.end()}; }

 private:
  static constexpr std::size_t kWindow = 128;
  double deviations_;
  std::deque<double> losses_;
};

}  // namespace polaron

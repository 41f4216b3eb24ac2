#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/element.h"
#include "cpu/families.h"
#include "cpu/simd_math.h"

namespace polaron::cpu {
namespace {

constexpr std::int64_t kParallelElements = 1 << 14;  // below, starting threads costs more than it saves
// Logits handled together: few enough to stay in the L1 cache between their maximum, their exponentials and their sum,
// so that a row comes from memory once for all three.
constexpr std::int64_t kBlock = 1024;

struct Extremes {
  float maximum;
  float poison;  // 0, or NaN when a logit is infinite or NaN: maximum, soft cap and e^-inf would hide some of these
};

template <class T>
Extremes scan(const T* logits, std::int64_t count) {
  float maximum = load(logits), poison = 0.0F;
#pragma omp simd reduction(max : maximum) reduction(+ : poison)
  for (std::int64_t i = 0; i < count; ++i) {
    const float z = load(logits + i);
    maximum = z > maximum ? z : maximum;
    poison += z * 0.0F;
  }
  return {maximum, poison};
}

// Sum of e^(z - maximum); with `keep` the terms go to `kept`, which may be `values`.
template <bool keep, class T>
float exponentials(const T* values, std::int64_t count, float maximum, float* kept) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    const float e = simd_exp2((load(values + i) - maximum) * std::numbers::log2e_v<float>);
    sum += e;
    if constexpr (keep) kept[i] = e;
  }
  return sum;
}

// capped = c tanh(z / c) with slope 1 - tanh^2(z / c), or capped = c z / sqrt(z^2 + c^2) with slope
// (c / sqrt(z^2 + c^2))^3.
template <class T>
void soft_cap(const T* logits, std::int64_t count, const Softcap& softcap, float* capped, float* slopes) {
  const float cap = softcap.cap, inverse_cap = 1.0F / cap;
  if (softcap.form == Softcap::Form::tanh) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      const float t = simd_tanh(load(logits + i) * inverse_cap);
      capped[i] = cap * t;
      slopes[i] = (1.0F - t) * (1.0F + t);
    }
    return;
  }
  const float steep = cap * 1e9F;  // beyond it the cap is reached, and squares would leave fp32's range
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float z = std::clamp(load(logits + i), -steep, steep), x = z * inverse_cap;
    const float shrink = 1.0F / std::sqrt(x * x + 1.0F);
    capped[i] = z * shrink;
    slopes[i] = shrink * shrink * shrink;
  }
}

// The same for one logit, in double: value and slope.
struct Capped {
  double value, slope;
};
Capped soft_cap(double z, const Softcap& softcap) {
  if (softcap.cap <= 0.0F) return {z, 1.0};
  const double x = z / softcap.cap;
  if (softcap.form == Softcap::Form::tanh) {
    const double t = std::tanh(x);
    return {softcap.cap * t, (1.0 - t) * (1.0 + t)};
  }
  const double shrink = 1.0 / std::sqrt(x * x + 1.0);
  return {z * shrink, shrink * shrink * shrink};
}

// log sum exp of a row, block by block, as maximum + log(sum). The two are never added: next to a large maximum the
// logarithm would lose its digits.
struct LogSumExp {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0.0;

  void add(double block_maximum, double block_sum) {
    if (block_maximum > maximum) {
      sum *= std::exp(maximum - block_maximum);
      maximum = block_maximum;
    }
    sum += block_sum * std::exp(block_maximum - maximum);
  }
  double log_probability(double z) const { return (z - maximum) - std::log(sum); }
};

// One row of logits of type T at a time; one object a thread.
template <class T>
class RowLoss {
 public:
  RowLoss(std::int64_t vocabulary, const Softcap& softcap, float scale, bool gradient)
      : vocabulary_(vocabulary),
        softcap_(softcap),
        scale_(scale),
        gradient_(gradient),
        block_maxima_((vocabulary + kBlock - 1) / kBlock),
        slopes_(softcap.cap > 0.0F ? vocabulary : 0),
        terms_(gradient && !kInPlace ? vocabulary : 0) {}

  // The loss of one row, whose logits become its gradient.
  double run(T* logits, std::int64_t width, std::int32_t target) {
    if (target < 0) {
      if (gradient_) std::fill_n(logits, width, T{});
      return 0.0;
    }
    const Capped wanted = soft_cap(static_cast<double>(load(logits + target)), softcap_);
    float* const terms = kept_terms(logits);
    const LogSumExp total = gradient_ ? log_sum_exp<true>(logits, terms) : log_sum_exp<false>(logits, terms);
    const double log_probability = total.log_probability(wanted.value);
    if (gradient_) {
      scale_terms(terms, total, logits);
      store(logits + target, static_cast<float>(scale_ * std::expm1(log_probability) * wanted.slope));
      std::fill_n(logits + vocabulary_, width - vocabulary_, T{});
    }
    return -log_probability;
  }

 private:
  // Calls body(first, count, block) for each block of the vocabulary.
  template <class Body>
  void in_blocks(Body&& body) const {
    for (std::int64_t first = 0; first < vocabulary_; first += kBlock) {
      body(first, std::min(kBlock, vocabulary_ - first), first / kBlock);
    }
  }

  // Where a row's e^(z - block maximum) are kept for its gradient: in place of fp32 logits. In place of bf16 ones they
  // would be rounded twice on their way to the gradient.
  float* kept_terms(T* logits) {
    if constexpr (kInPlace) {
      return logits;
    } else {
      return terms_.data();
    }
  }

  // Leaves e^(z - block maximum) in `terms` when they are kept: one exponential a logit then does for loss and
  // gradient.
  template <bool keep>
  LogSumExp log_sum_exp(const T* logits, float* terms) {
    LogSumExp total;
    std::array<float, kBlock> capped;
    in_blocks([&](std::int64_t first, std::int64_t count, std::int64_t block) {
      auto [maximum, poison] = scan(logits + first, count);
      float* const kept = keep ? terms + first : nullptr;
      float sum = 0.0F;
      if (softcap_.cap > 0.0F) {
        soft_cap(logits + first, count, softcap_, capped.data(), slopes_.data() + first);
        maximum = scan(capped.data(), count).maximum;
        sum = exponentials<keep>(capped.data(), count, maximum, kept);
      } else {
        sum = exponentials<keep>(logits + first, count, maximum, kept);
      }
      total.add(maximum, sum + poison);
      block_maxima_[block] = maximum;
    });
    return total;
  }

  // gradient = scale * probability * slope of the soft cap, from the kept terms.
  void scale_terms(const float* terms, const LogSumExp& total, T* gradient) const {
    in_blocks([&](std::int64_t first, std::int64_t count, std::int64_t block) {
      const auto factor = static_cast<float>(scale_ * std::exp(total.log_probability(block_maxima_[block])));
      const float* const from = terms + first;
      T* const to = gradient + first;
      if (softcap_.cap > 0.0F) {
        const float* const slopes = slopes_.data() + first;
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) store(to + i, from[i] * factor * slopes[i]);
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) store(to + i, from[i] * factor);
      }
    });
  }

  static constexpr bool kInPlace = std::is_same_v<T, float>;

  std::int64_t vocabulary_;
  Softcap softcap_;
  float scale_;
  bool gradient_;
  std::vector<float> block_maxima_, slopes_, terms_;
};

class CpuLoss final : public LossOps {
 public:
  void cross_entropy(Stream&, const Tensor& logits, std::int64_t vocabulary, const Tensor& targets,
                     const Softcap& softcap, float scale, bool gradient, double* loss_sum) override {
    const std::int32_t* const wanted = targets.i32();
    check(logits, vocabulary, wanted);
    row_losses_.resize(logits.rows);
    double* const losses = row_losses_.data();
    with_element_type(logits.dtype, "cross entropy", [&](auto type) {
      using T = decltype(type);
      T* const data = elements<T>(logits);
#pragma omp parallel if (logits.elements() >= kParallelElements)
      {
        RowLoss<T> loss(vocabulary, softcap, scale, gradient);
#pragma omp for schedule(static)
        for (std::int64_t n = 0; n < logits.rows; ++n) {
          losses[n] = loss.run(row_of(data, logits, n), logits.cols, wanted[n]);
        }
      }
    });
    double sum = 0.0;  // in row order, whatever the number of threads
    for (std::int64_t n = 0; n < logits.rows; ++n) sum += losses[n];
    *loss_sum += sum;
  }

 private:
  // Exceptions cannot leave a parallel loop, so targets are looked at first.
  static void check(const Tensor& logits, std::int64_t vocabulary, const std::int32_t* targets) {
    if (vocabulary < 1 || vocabulary > logits.cols) {
      throw std::logic_error("cross entropy: a vocabulary of " + std::to_string(vocabulary) + " in logits of width " +
                             std::to_string(logits.cols));
    }
    for (std::int64_t n = 0; n < logits.rows; ++n) {
      if (targets[n] < -1 || targets[n] >= vocabulary) {
        throw std::logic_error("cross entropy: target " + std::to_string(targets[n]) + " in row " + std::to_string(n) +
                               " is outside a vocabulary of " + std::to_string(vocabulary));
      }
    }
  }

  std::vector<double> row_losses_;  // kept between calls, which come one at a time
};

}  // namespace

std::unique_ptr<LossOps> make_loss_ops() { return std::make_unique<CpuLoss>(); }

}  // namespace polaron::cpu

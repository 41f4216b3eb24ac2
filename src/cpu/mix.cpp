#include <stdexcept>
#include <vector>

#include "cpu/element.h"
#include "cpu/families.h"

namespace polaron::cpu {
namespace {

constexpr std::int64_t kParallelElements = 1 << 14;  // below, starting threads costs more than it saves

inline float value_of(const float* coefficient) { return coefficient == nullptr ? 1.0F : *coefficient; }

template <class T>
void mix_row(const T* x, float a, const T* y, float b, std::int64_t n, T* out) {
  if (y == nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(out + i, a * load(x + i));
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(out + i, a * load(x + i) + b * load(y + i));
  }
}

template <class T>
double dot(const T* d, const T* x, std::int64_t n) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += load(d + i) * load(x + i);
  return static_cast<double>(sum);
}

template <class T>
void scale_row(const T* d_out, float coefficient, bool accumulate, std::int64_t n, T* d_x) {
  if (accumulate) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(d_x + i, load(d_x + i) + coefficient * load(d_out + i));
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(d_x + i, coefficient * load(d_out + i));
  }
}

class CpuMix final : public MixOps {
 public:
  void forward(Stream&, std::span<const MixTerm> terms, const Tensor& out) override {
    check(terms.size());
    with_element_type(out.dtype, "mix", [&](auto type) {
      using T = decltype(type);
      const MixTerm second = terms.size() > 1 ? terms[1] : MixTerm{};
      T *const to = elements<T>(out), *const x = elements<T>(terms[0].x), *const y = elements<T>(second.x);
      const float a = value_of(terms[0].coefficient), b = value_of(second.coefficient);
#pragma omp parallel for schedule(static) if (out.elements() >= kParallelElements)
      for (std::int64_t n = 0; n < out.rows; ++n) {
        mix_row<T>(row_of(x, terms[0].x, n), a, row_of(y, second.x, n), b, out.cols, row_of(to, out, n));
      }
    });
  }

  void backward(Stream&, const Tensor& d_out, std::span<const MixTerm> terms,
                std::span<const MixGradient> gradients) override {
    check(terms.size());
    if (gradients.size() != terms.size()) throw std::logic_error("mix backward: a gradient for each term");
    with_element_type(d_out.dtype, "mix backward", [&](auto type) {
      using T = decltype(type);
      T* const d = elements<T>(d_out);
      row_dots_.assign(terms.size() * static_cast<std::size_t>(d_out.rows), 0.0);
      // A row's products with d_out come before any d_x, which may lie where d_out does; that one comes last.
#pragma omp parallel for schedule(static) if (d_out.elements() >= kParallelElements)
      for (std::int64_t n = 0; n < d_out.rows; ++n) {
        const T* const from = row_of(d, d_out, n);
        for (std::size_t i = 0; i < terms.size(); ++i) {
          if (gradients[i].d_coefficient == nullptr) continue;
          const T* const x = row_of(elements<T>(terms[i].x), terms[i].x, n);
          row_dots_[i * static_cast<std::size_t>(d_out.rows) + static_cast<std::size_t>(n)] = dot(from, x, d_out.cols);
        }
        for (const bool in_place : {false, true}) {
          for (std::size_t i = 0; i < terms.size(); ++i) {
            const Tensor& d_x = gradients[i].d_x;
            if (!d_x || (d_x.data == d_out.data) != in_place) continue;
            scale_row<T>(from, value_of(terms[i].coefficient), gradients[i].accumulate, d_out.cols,
                         row_of(elements<T>(d_x), d_x, n));
          }
        }
      }
    });
    for (std::size_t i = 0; i < terms.size(); ++i) {
      if (gradients[i].d_coefficient == nullptr) continue;
      double sum = 0.0;  // in row order, whatever the number of threads
      for (std::int64_t n = 0; n < d_out.rows; ++n) {
        sum += row_dots_[i * static_cast<std::size_t>(d_out.rows) + static_cast<std::size_t>(n)];
      }
      *gradients[i].d_coefficient += static_cast<float>(sum);
    }
  }

 private:
  static void check(std::size_t terms) {
    if (terms == 0 || terms > kMostTerms) throw std::logic_error("a mix has one or two terms");
  }
  std::vector<double> row_dots_;  // kept between calls, which come one at a time
};

}  // namespace

std::unique_ptr<MixOps> make_mix_ops() { return std::make_unique<CpuMix>(); }

}  // namespace polaron::cpu

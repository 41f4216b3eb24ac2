// Rotary embedding and norm of heads in double precision, from the formulas in backend/model_ops.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "backend/model_ops.h"
#include "ops/attention_reference.h"
#include "ops/reference.h"

namespace polaron::test {

inline constexpr float kHeadEps = 1e-5F;

struct RotaryTables {
  Matrix cos, sin;
  Rotary rotary() { return {cos.tensor(), sin.tensor()}; }
};
inline RotaryTables rotary_tables(std::int64_t length, std::int64_t head_size) {
  const std::int64_t half = head_size / 2;
  RotaryTables tables{Matrix(length, half, 1), Matrix(length, half, 1)};
  for (std::int64_t t = 0; t < length; ++t) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle =
          static_cast<double>(t) * std::pow(100.0, -static_cast<double>(j) / static_cast<double>(half));
      tables.cos.at(t, j) = static_cast<float>(std::cos(angle));
      tables.sin.at(t, j) = static_cast<float>(std::sin(angle));
    }
  }
  return tables;
}

// How many heads of a packed row a norm concerns; they come first.
inline std::int64_t normed_heads(const AttentionShape& s, HeadNorm norm) {
  return norm == HeadNorm::none ? 0 : norm == HeadNorm::qk ? s.heads + s.kv_heads : s.heads + 2 * s.kv_heads;
}

// prepare, from the formulas in model_ops.h.
inline Doubles reference_prepare(const AttentionShape& s, HeadNorm norm, const RotaryTables* tables, Doubles qkv,
                                 Doubles* rstd) {
  const std::int64_t heads = s.heads + 2 * s.kv_heads, half = s.head_size / 2;
  for (std::int64_t row = 0; row < s.batch * s.sequence_length; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* x = qkv.data() + row * s.qkv_width() + head * s.head_size;
      if (head < normed_heads(s, norm)) {
        double squares = 0.0;
        for (std::int64_t j = 0; j < s.head_size; ++j) squares += x[j] * x[j];
        const double factor =
            1.0 / std::sqrt(squares / static_cast<double>(s.head_size) + static_cast<double>(kHeadEps));
        for (std::int64_t j = 0; j < s.head_size; ++j) x[j] *= factor;
        if (rstd != nullptr) rstd->push_back(factor);
      }
      if (tables == nullptr || head >= s.heads + s.kv_heads) continue;
      for (std::int64_t j = 0; j < half; ++j) {
        const std::int64_t t = row % s.sequence_length;
        const double c = static_cast<double>(tables->cos.at(t, j)), n = static_cast<double>(tables->sin.at(t, j));
        const double low = x[j], high = x[j + half];
        x[j] = low * c - high * n;
        x[j + half] = high * c + low * n;
      }
    }
  }
  return qkv;
}

// prepare_backward from prepare's result y and the factors rstd [N, normed heads] that it divided by. Turning is
// orthogonal, so its inverse is its transpose; of x_hat = rstd x it takes dx = rstd (g - x_hat mean(g x_hat)), in which
// mean(g x_hat) = mean(dy y).
inline Doubles reference_prepare_backward(const AttentionShape& s, HeadNorm norm, const RotaryTables* tables,
                                          const Doubles& y, const Doubles& rstd, Doubles d) {
  const std::int64_t heads = s.heads + 2 * s.kv_heads, normed = normed_heads(s, norm), half = s.head_size / 2,
                     size = s.head_size;
  for (std::int64_t row = 0; row < s.batch * s.sequence_length; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      double* g = d.data() + row * s.qkv_width() + head * size;
      const double* of_head = y.data() + row * s.qkv_width() + head * size;
      if (head < normed) {
        double mean = 0.0;
        for (std::int64_t j = 0; j < size; ++j) mean += g[j] * of_head[j] / static_cast<double>(size);
        for (std::int64_t j = 0; j < size; ++j) g[j] = rstd[row * normed + head] * (g[j] - of_head[j] * mean);
      }
      for (std::int64_t j = 0; tables != nullptr && head < s.heads + s.kv_heads && j < half; ++j) {
        const std::int64_t t = row % s.sequence_length;
        const double c = static_cast<double>(tables->cos.at(t, j)), n = static_cast<double>(tables->sin.at(t, j));
        const double low = g[j], high = g[j + half];
        g[j] = low * c + high * n;
        g[j + half] = high * c - low * n;
      }
    }
  }
  return d;
}

struct PrepareKind {
  HeadNorm norm;
  bool rotate;
  std::string name() const {
    const char* const of = norm == HeadNorm::none ? "" : norm == HeadNorm::qk ? ", norm of q, k" : ", norm of q, k, v";
    return std::string(of) + (rotate ? ", rotary" : "");
  }
};
inline constexpr PrepareKind kPrepareKinds[] = {{HeadNorm::none, false}, {HeadNorm::none, true}, {HeadNorm::qk, false},
                                                {HeadNorm::qk, true},    {HeadNorm::qkv, false}, {HeadNorm::qkv, true}};

}  // namespace polaron::test

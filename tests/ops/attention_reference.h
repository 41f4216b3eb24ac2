// Attention in double precision, written from the definition: every query against every key it sees, one at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/model_ops.h"
#include "ops/reference.h"

namespace polaron::test {

inline std::string describe(const AttentionShape& s) {
  return "B " + std::to_string(s.batch) + ", T " + std::to_string(s.sequence_length) + ", heads " +
         std::to_string(s.heads) + ":" + std::to_string(s.kv_heads) + ", head size " + std::to_string(s.head_size) +
         ", window " + std::to_string(s.window);
}

inline AttentionShape attention_shape(std::int64_t batch, std::int64_t length, std::int64_t heads,
                                      std::int64_t kv_heads, std::int64_t head_size, std::int64_t window = 0) {
  AttentionShape shape{batch, length, heads, kv_heads, head_size, 0.0F, window};
  shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_size)));
  return shape;
}

struct AttentionReference {
  Doubles out;    // [N, q_width]
  Doubles lse;    // [B * heads, T]
  Doubles d_qkv;  // [N, qkv_width]
  // Of each element of out and d_qkv, the sums of its terms' absolute values and of their squares, each term a weight P
  // or dS times an operand: how much rounding the weights can matter. Rounding them within u changes a result by u
  // times the first at most, and by about u times the root of the second where the errors are as good as independent.
  Doubles out_terms, d_qkv_terms, out_squares, d_qkv_squares;
};

// qkv [N, qkv_width] and d_out [N, q_width] dense; document_start may be empty. The gradient takes the rows' means of
// d_out * out from `given_out` where there is one: backward is handed forward's result as it was rounded.
inline AttentionReference reference_attention(const AttentionShape& s, const Doubles& qkv, const Doubles& d_out,
                                              const std::vector<std::int32_t>& document_start,
                                              const Doubles& given_out = {}) {
  const std::int64_t width = s.qkv_width(), size = s.head_size, rows = s.batch * s.sequence_length;
  AttentionReference result;
  result.out.assign(rows * s.q_width(), 0.0);
  result.lse.assign(s.batch * s.heads * s.sequence_length, 0.0);
  result.d_qkv.assign(rows * width, 0.0);
  result.out_terms.assign(result.out.size(), 0.0);
  result.d_qkv_terms.assign(result.d_qkv.size(), 0.0);
  result.out_squares.assign(result.out.size(), 0.0);
  result.d_qkv_squares.assign(result.d_qkv.size(), 0.0);
  const auto add = [](double term, double& sum, double& terms, double& squares) {
    sum += term;
    terms += std::abs(term);
    squares += term * term;
  };
  const double scale = static_cast<double>(s.scale);
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      const std::int64_t kv_head = h / (s.heads / s.kv_heads);
      const std::int64_t k_at = s.q_width() + kv_head * size, v_at = k_at + s.kv_width();
      for (std::int64_t t = 0; t < s.sequence_length; ++t) {
        const std::int64_t row = b * s.sequence_length + t;
        std::int64_t first = document_start.empty() ? 0 : document_start[row];
        if (s.window > 0) first = std::max(first, t - s.window + 1);
        const double* q = qkv.data() + row * width + h * size;
        const std::int64_t out_at = row * s.q_width() + h * size;
        Doubles weight(t + 1, 0.0);
        double largest = -INFINITY, total = 0.0;
        for (std::int64_t j = first; j <= t; ++j) {
          const double* k = qkv.data() + (b * s.sequence_length + j) * width + k_at;
          for (std::int64_t d = 0; d < size; ++d) weight[j] += scale * q[d] * k[d];
          largest = std::max(largest, weight[j]);
        }
        for (std::int64_t j = first; j <= t; ++j) total += std::exp(weight[j] - largest);
        result.lse[(b * s.heads + h) * s.sequence_length + t] = largest + std::log(total);
        for (std::int64_t j = first; j <= t; ++j) {
          weight[j] = std::exp(weight[j] - largest) / total;
          const double* v = qkv.data() + (b * s.sequence_length + j) * width + v_at;
          for (std::int64_t d = 0; d < size; ++d) {
            const std::int64_t at = out_at + d;
            add(weight[j] * v[d], result.out[at], result.out_terms[at], result.out_squares[at]);
          }
        }
        // Softmax backward: dz_j = w_j (dw_j - sum_i w_i dw_i) with dw_j = d_out . v_j.
        const double* d_o = d_out.data() + row * s.q_width() + h * size;
        const std::int64_t q_at = row * width + h * size;
        Doubles d_weight(t + 1, 0.0);
        double mean = 0.0;
        for (std::int64_t j = first; j <= t; ++j) {
          const double* v = qkv.data() + (b * s.sequence_length + j) * width + v_at;
          for (std::int64_t d = 0; d < size; ++d) d_weight[j] += d_o[d] * v[d];
          mean += weight[j] * d_weight[j];
        }
        if (!given_out.empty()) {
          mean = 0.0;
          for (std::int64_t d = 0; d < size; ++d) mean += d_o[d] * given_out[row * s.q_width() + h * size + d];
        }
        for (std::int64_t j = first; j <= t; ++j) {
          const std::int64_t key_row = b * s.sequence_length + j;
          const double* k = qkv.data() + key_row * width + k_at;
          const double d_score = weight[j] * (d_weight[j] - mean) * scale;
          for (std::int64_t d = 0; d < size; ++d) {
            const auto add_gradient = [&](double term, std::int64_t at) {
              add(term, result.d_qkv[at + d], result.d_qkv_terms[at + d], result.d_qkv_squares[at + d]);
            };
            add_gradient(d_score * k[d], q_at);
            add_gradient(d_score * q[d], key_row * width + k_at);
            add_gradient(weight[j] * d_o[d], key_row * width + v_at);
          }
        }
      }
    }
  }
  return result;
}

// d f / d x of every element by central differences.
inline Doubles central_differences(const std::function<double(const Doubles&)>& f, Doubles x) {
  constexpr double kStep = 1e-5;
  Doubles gradient;
  for (double& value : x) {
    const double at = value;
    value = at + kStep;
    const double above = f(x);
    value = at - kStep;
    const double below = f(x);
    value = at;
    gradient.push_back((above - below) / (2.0 * kStep));
  }
  return gradient;
}

// Documents of the given lengths over and over, in every sequence.
inline std::vector<std::int32_t> documents(const AttentionShape& s, const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> starts;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    std::int64_t start = 0;
    std::size_t document = static_cast<std::size_t>(b);
    for (std::int64_t t = 0; t < s.sequence_length; ++t) {
      if (t - start == lengths[document % lengths.size()]) {
        start = t;
        ++document;
      }
      starts.push_back(static_cast<std::int32_t>(start));
    }
  }
  return starts;
}

}  // namespace polaron::test

// The products of attention in fp32 tiles (gemm_tile.h), for the walks that attention.h describes. bf16 is unpacked
// where blocks are copied.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/attention.h"
#include "cpu/gemm_tile.h"
#include "cpu/simd.h"

namespace polaron::cpu {

static inline void store_weights(float* to, Vec weights) { store_vec(to, weights); }

// There is nothing to choose or to make ready.
struct NoUnit {};
struct NoUnitReady {
  explicit NoUnitReady(NoUnit) {}
};

// Queries go through in panels of kTileCols, one query a vector lane; everything of a panel is transposed.
template <class T>
class Fp32Forward {
 public:
  using Element = T;
  using Weight = float;
  using Unit = NoUnit;
  using Ready = NoUnitReady;
  static constexpr std::int64_t kPanel = kTileCols;
  static constexpr std::int64_t kGrain = 1;

  Fp32Forward(ScratchCut& cut, const AttentionShape& shape, std::int64_t panels, std::int64_t most_keys, Unit)
      : size_(shape.head_size),
        q_scale_(shape.scale * kLog2OfE),
        q_(cut.take(panels * size_ * kPanel)),
        k_(cut.take(most_keys * size_)),
        v_(cut.take(most_keys * size_)) {}

  // Of a panel's sums.
  std::int64_t sums_rows() const { return size_; }
  // By what scores() are still to be multiplied: q is scaled on the way in.
  static constexpr bool kScaled = true;

  // Up to kPanel queries become panel p.
  void pack_queries(std::int64_t p, const T* q, std::int64_t stride, std::int64_t count) const {
    if (count < kPanel) std::fill_n(panel(p), size_ * kPanel, 0.0F);
    transpose_scaled(q, stride, count, size_, q_scale_, panel(p), kPanel);
  }
  // Copied because rows of the projection may all fall on the same cache sets.
  void pack_keys(const T* k, const T* v, std::int64_t stride, std::int64_t count) const {
    copy_rows(k, stride, count, size_, k_, size_);
    copy_rows(v, stride, count, size_, v_, size_);
  }

  // scores [high - low, kPanel] of keys [low, high) of those packed, and panel p.
  void multiply_scores(std::int64_t p, std::int64_t low, std::int64_t high, float* scores) const {
    multiply_block(AOrder::row_major, high - low, kPanel, size_, k_ + low * size_, size_, panel(p), kPanel, scores,
                   kPanel, false);
  }
  // Where the weights [high - low, kPanel] made of the scores are wanted.
  Weight* weights(float* scores) const { return scores; }
  // sums [sums_rows(), kPanel] += V^T weights.
  void add_weighted(std::int64_t low, std::int64_t high, const Weight* weights, float* sums) const {
    multiply_block(AOrder::depth_major, size_, kPanel, high - low, v_ + low * size_, size_, weights, kPanel, sums,
                   kPanel, true);
  }

 private:
  float* panel(std::int64_t p) const { return q_ + p * size_ * kPanel; }

  std::int64_t size_;
  float q_scale_;
  float* q_;  // of a panel: [head_size, kPanel]
  float* k_;  // [keys, head_size]
  float* v_;
};

// The key block's k and v are transposed once into panels of kTileCols keys and serve all queries.
template <class T>
class Fp32Backward {
 public:
  using Element = T;
  using Weight = float;
  using Unit = NoUnit;
  using Ready = NoUnitReady;
  static constexpr std::int64_t kPanel = kTileCols;

  // Blocks have most_queries queries and most_keys keys at most; most_keys is the stride of scores and weights.
  Fp32Backward(ScratchCut& cut, const AttentionShape& shape, std::int64_t most_queries, std::int64_t most_keys, Unit)
      : size_(shape.head_size),
        stride_((size_ + kLanes - 1) / kLanes * kLanes),
        ld_(most_keys),
        k_panels_(cut.take(most_keys * size_)),
        v_panels_(cut.take(most_keys * size_)),
        k_(cut.take(most_keys * stride_)),
        q_(cut.take(most_queries * stride_)),
        d_out_(cut.take(most_queries * stride_)) {}

  // Of sums of gradients in scratch.
  std::int64_t stride() const { return stride_; }

  void pack_keys(const T* k, const T* v, std::int64_t stride, std::int64_t count) const {
    copy_rows(k, stride, count, size_, k_, stride_);
    for (std::int64_t key = 0; key < count; key += kPanel) {
      const std::int64_t width = std::min<std::int64_t>(kPanel, count - key);
      pack_panel(k + key * stride, stride, width, k_panels_ + key * size_);
      pack_panel(v + key * stride, stride, width, v_panels_ + key * size_);
    }
  }
  void pack_queries(const T* q, std::int64_t q_stride, const T* d_out, std::int64_t d_out_stride,
                    std::int64_t count) const {
    copy_rows(q, q_stride, count, size_, q_, stride_);
    copy_rows(d_out, d_out_stride, count, size_, d_out_, stride_);
  }

  // Q K^T and dO V^T of queries [query, queries) and the keys of the panel that begins at `key`.
  void multiply_scores(std::int64_t query, std::int64_t queries, std::int64_t key, float* scores, float* d_p) const {
    const std::int64_t at = query * ld_ + key;
    multiply_block(AOrder::row_major, queries - query, kPanel, size_, q_ + query * stride_, stride_,
                   k_panels_ + key * size_, kPanel, scores + at, ld_, false);
    multiply_block(AOrder::row_major, queries - query, kPanel, size_, d_out_ + query * stride_, stride_,
                   v_panels_ + key * size_, kPanel, d_p + at, ld_, false);
  }
  // Where P and dS are wanted: one for the other's place, or elsewhere.
  Weight* p(float* scores) const { return scores; }
  Weight* d_s(float* d_p) const { return d_p; }

  // d_v (+)= P^T dO and d_k (+)= dS^T Q, for keys [key, end) from queries [query, queries). Rows of the sums are those
  // of the block of keys.
  void add_d_k_and_v(std::int64_t query, std::int64_t queries, std::int64_t key, std::int64_t end, const Weight* p,
                     const Weight* d_s, const Sums& d_k, const Sums& d_v, bool accumulate) const {
    const std::int64_t at = query * ld_ + key;
    multiply_block(AOrder::depth_major, end - key, size_, queries - query, p + at, ld_, d_out_ + query * stride_,
                   stride_, d_v.row(key), d_v.stride, accumulate);
    multiply_block(AOrder::depth_major, end - key, size_, queries - query, d_s + at, ld_, q_ + query * stride_, stride_,
                   d_k.row(key), d_k.stride, accumulate);
  }
  // d_q (+)= dS K, for queries [query, last) from keys [key, end).
  void add_d_q(std::int64_t query, std::int64_t last, std::int64_t key, std::int64_t end, const Weight* d_s,
               const Sums& d_q, bool accumulate) const {
    multiply_block(AOrder::row_major, last - query, size_, end - key, d_s + query * ld_ + key, ld_, k_ + key * stride_,
                   stride_, d_q.row(query), d_q.stride, accumulate);
  }

 private:
  void pack_panel(const T* from, std::int64_t stride, std::int64_t width, float* to) const {
    if (width < kPanel) std::fill_n(to, size_ * kPanel, 0.0F);
    transpose_scaled(from, stride, width, size_, 1.0F, to, kPanel);
  }

  std::int64_t size_, stride_, ld_;  // stride_: head_size rounded up to whole vectors
  float* k_panels_;                  // of a panel: [head_size, kPanel], transposed
  float* v_panels_;
  float* k_;  // [keys, head_size] with zeros up to the stride, like q and d_out
  float* q_;
  float* d_out_;
};

}  // namespace polaron::cpu

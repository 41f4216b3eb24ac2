#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/element.h"
#include "cpu/families.h"
#include "cpu/gemm_tile.h"
#include "cpu/simd.h"
#include "cpu/simd_math.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// A task is a head and kQueryBlock queries; it walks over blocks of kKeyBlock keys. Queries go through in panels of
// kTileCols, one query a vector lane, so that the softmax needs no sums across lanes; a panel's scores stay in the
// first-level cache.
constexpr int64_t kPanels = 4;
constexpr int64_t kQueryBlock = kPanels * kTileCols;
constexpr int64_t kKeyBlock = 128;

constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;
// Below every score, and finite, so that the difference of two maxima is never NaN.
constexpr float kNoScore = -1e30F;

// A thread's memory; with null only its size. Scores are in units of log 2: q is scaled by `scale` * log2 e on the way
// in.
struct ForwardScratch {
  ForwardScratch(float* memory, int64_t head_size) : head_size_(head_size) {
    const auto take = [&](int64_t count) {
      float* const block = memory == nullptr ? nullptr : memory + floats;
      floats += aligned_floats(count);
      return block;
    };
    q = take(kPanels * head_size * kTileCols);
    sums = take(kPanels * head_size * kTileCols);
    max = take(kQueryBlock);
    total = take(kQueryBlock);
    scores = take(kKeyBlock * kTileCols);
    k = take(kKeyBlock * head_size);
    v = take(kKeyBlock * head_size);
  }
  float* panel_q(int64_t p) const { return q + p * head_size_ * kTileCols; }
  float* panel_sums(int64_t p) const { return sums + p * head_size_ * kTileCols; }

  float* q;       // of a panel: [head_size, kTileCols]
  float* sums;    // of a panel: weighted sums of v so far, [head_size, kTileCols]
  float* max;     // of a query: largest score so far
  float* total;   // of a query: sum of 2^(score - max) so far
  float* scores;  // [keys, kTileCols]
  float* k;       // [keys, head_size], copied because rows of the projection may all fall on the same cache sets
  float* v;
  std::size_t floats = 0;  // of all of them

 private:
  int64_t head_size_;
};

// Which keys the queries of a panel see, where not all see all: key j is visible to lane i if first[i] <= j <= last[i].
struct Visibility {
  alignas(64) std::int32_t first[kTileCols];
  alignas(64) std::int32_t last[kTileCols];
};

IntVec load_ints(const std::int32_t* from) {
  IntVec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// scores[j][lane] -> 2^(score - new max), with max, total and the sums so far brought to the new maximum.
void softmax_step(float* scores, int64_t keys, int64_t first_key, const Visibility* visibility, float* max,
                  float* total, float* sums, int64_t head_size) {
  const Vec hidden = broadcast(-INFINITY);
  for (int lane = 0; lane < kTileCols; lane += kLanes) {
    const Vec before = load_vec(max + lane);
    Vec highest = before;
    if (visibility != nullptr) {
      const IntVec first = load_ints(visibility->first + lane), last = load_ints(visibility->last + lane);
      for (int64_t j = 0; j < keys; ++j) {
        float* const score = scores + j * kTileCols + lane;
        const IntVec key = broadcast(static_cast<std::int32_t>(first_key + j));
        const IntVec visible = (key >= first) & (key <= last);
        const Vec s = visible ? load_vec(score) : hidden;
        store_vec(score, s);
        highest = s > highest ? s : highest;
      }
    } else {
      for (int64_t j = 0; j < keys; ++j) {
        const Vec s = load_vec(scores + j * kTileCols + lane);
        highest = s > highest ? s : highest;
      }
    }
    const Vec factor = simd_exp2(before - highest);
    store_vec(max + lane, highest);
    Vec sum = load_vec(total + lane) * factor;
    for (int64_t j = 0; j < keys; ++j) {
      float* const score = scores + j * kTileCols + lane;
      const Vec p = simd_exp2(load_vec(score) - highest);
      store_vec(score, p);
      sum += p;
    }
    store_vec(total + lane, sum);
    for (int64_t d = 0; d < head_size; ++d) {
      float* const at = sums + d * kTileCols + lane;
      store_vec(at, load_vec(at) * factor);
    }
  }
}

// Queries [t0, t0 + count) of head h in sequence b.
template <class T>
void forward_block(const AttentionInput& in, const T* qkv, int64_t b, int64_t h, int64_t t0, int64_t count, T* out,
                   int64_t out_stride, float* lse, const ForwardScratch& scratch) {
  const int64_t size = in.shape.head_size, kv_head = h / in.group(), stride = in.qkv.stride;
  const T* rows = qkv + in.row(b, 0) * stride;
  const int64_t panels = (count + kTileCols - 1) / kTileCols;
  const auto width = [&](int64_t p) { return std::min<int64_t>(kTileCols, count - p * kTileCols); };

  std::fill_n(scratch.max, kQueryBlock, kNoScore);
  std::fill_n(scratch.total, kQueryBlock, 0.0F);
  std::fill_n(scratch.sums, panels * size * kTileCols, 0.0F);
  Visibility visibility[kPanels];
  AttentionInput::Range first[kPanels];
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t t = t0 + p * kTileCols;
    if (width(p) < kTileCols) std::fill_n(scratch.panel_q(p), size * kTileCols, 0.0F);
    transpose_scaled(rows + t * stride + in.q_column(h), stride, width(p), size, in.shape.scale * kLog2E,
                     scratch.panel_q(p), kTileCols);
    first[p] = in.first_keys(b, t, width(p));
    for (int64_t lane = 0; lane < kTileCols; ++lane) {
      const int64_t query = t + std::min(lane, width(p) - 1);  // unused lanes repeat the last query
      visibility[p].first[lane] = static_cast<std::int32_t>(in.first_key(b, query));
      visibility[p].last[lane] = static_cast<std::int32_t>(query);
    }
  }

  const int64_t end = t0 + count;
  for (int64_t k0 = in.first_keys(b, t0, count).low; k0 < end; k0 += kKeyBlock) {
    const int64_t k1 = std::min(k0 + kKeyBlock, end);
    copy_rows(rows + k0 * stride + in.k_column(kv_head), stride, k1 - k0, size, scratch.k, size);
    copy_rows(rows + k0 * stride + in.v_column(kv_head), stride, k1 - k0, size, scratch.v, size);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t t = t0 + p * kTileCols;
      const int64_t low = std::max(k0, first[p].low), high = std::min(k1, t + width(p));
      if (low >= high) continue;
      multiply_block(AOrder::row_major, high - low, kTileCols, size, scratch.k + (low - k0) * size, size,
                     scratch.panel_q(p), kTileCols, scratch.scores, kTileCols, false);
      const bool all_visible = high <= t + 1 && low >= first[p].high;
      softmax_step(scratch.scores, high - low, low, all_visible ? nullptr : &visibility[p], scratch.max + p * kTileCols,
                   scratch.total + p * kTileCols, scratch.panel_sums(p), size);
      multiply_block(AOrder::depth_major, size, kTileCols, high - low, scratch.v + (low - k0) * size, size,
                     scratch.scores, kTileCols, scratch.panel_sums(p), kTileCols, true);
    }
  }

  for (int64_t p = 0; p < panels; ++p) {
    const int64_t t = t0 + p * kTileCols;
    float *total = scratch.total + p * kTileCols, *sums = scratch.panel_sums(p);
    for (int lane = 0; lane < kTileCols; lane += kLanes) {
      const Vec weight = load_vec(total + lane), inverse = 1.0F / weight;
      for (int64_t d = 0; d < size; ++d) {
        float* const at = sums + d * kTileCols + lane;
        store_vec(at, load_vec(at) * inverse);
      }
      store_vec(total + lane, (load_vec(scratch.max + p * kTileCols + lane) + simd_log2(weight)) * kLn2);
    }
    transpose_scaled(sums, kTileCols, size, width(p), 1.0F, out + in.row(b, t) * out_stride + in.q_column(h),
                     out_stride);
    std::copy_n(total, width(p), lse + (b * in.shape.heads + h) * in.shape.sequence_length + t);
  }
}

class CpuAttentionOps final : public AttentionOps {
 public:
  void prepare(Stream&, const AttentionShape& shape, HeadNorm norm, float eps, const Rotary& rotary, const Tensor& qkv,
               const Tensor& head_rstd) override {
    attention_prepare(shape, norm, eps, rotary, qkv, head_rstd);
  }
  void prepare_backward(Stream&, const AttentionShape& shape, HeadNorm norm, const Rotary& rotary, const Tensor& qkv,
                        const Tensor& head_rstd, const Tensor& d_qkv) override {
    attention_prepare_backward(shape, norm, rotary, qkv, head_rstd, d_qkv);
  }
  void forward(Stream&, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key, const Tensor& out,
               const Tensor& lse) override {
    attention_forward(AttentionInput(shape, qkv, first_key), out, lse, scratch_);
  }
  void backward(Stream&, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key, const Tensor& out,
                const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv) override {
    attention_backward(AttentionInput(shape, qkv, first_key), out, lse, d_out, d_qkv, scratch_, delta_);
  }

 private:
  ThreadScratch scratch_;
  std::vector<float> delta_;
};

}  // namespace

AttentionInput::AttentionInput(const AttentionShape& shape_, const Tensor& qkv_, const Tensor& first_key)
    : shape(shape_), qkv(qkv_), first_of_row(first_key ? first_key.i32() : nullptr) {}

int64_t AttentionInput::first_key(int64_t b, int64_t t) const {
  int64_t first = first_of_row != nullptr ? std::clamp<int64_t>(first_of_row[row(b, t)], 0, t) : 0;
  if (shape.window > 0) first = std::max(first, t - shape.window + 1);
  return first;
}

AttentionInput::Range AttentionInput::first_keys(int64_t b, int64_t t, int64_t count) const {
  Range range{first_key(b, t), first_key(b, t)};
  for (int64_t i = 1; i < count; ++i) {
    const int64_t first = first_key(b, t + i);
    range = {std::min(range.low, first), std::max(range.high, first)};
  }
  return range;
}

template <class T>
void copy_rows(const T* from, int64_t from_stride, int64_t rows, int64_t width, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += stride) {
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) store_vec(to + c, load_vec(from + c));
    for (; c < width; ++c) to[c] = load(from + c);
    for (; c < stride; ++c) to[c] = 0.0F;
  }
}

template void copy_rows(const float*, int64_t, int64_t, int64_t, float*, int64_t);
template void copy_rows(const bf16*, int64_t, int64_t, int64_t, float*, int64_t);

void attention_forward(const AttentionInput& input, const Tensor& out, const Tensor& lse, ThreadScratch& scratch) {
  const AttentionShape& shape = input.shape;
  scratch.reserve(omp_get_max_threads(), ForwardScratch(nullptr, shape.head_size).floats);
  float* const lse_data = lse.f32();
  const int64_t blocks = (shape.sequence_length + kQueryBlock - 1) / kQueryBlock;
  const int64_t tasks = shape.batch * shape.heads * blocks;
  with_element_type(out.dtype, "attention forward", [&](auto type) {
    using T = decltype(type);
    const T* const qkv = elements<T>(input.qkv);
    T* const out_data = elements<T>(out);
#pragma omp parallel
    {
      const ForwardScratch mine(scratch.for_thread(omp_get_thread_num()), shape.head_size);
      // Heads one after the other, so that neighbours share keys in cache; the long blocks of a head first, so that the
      // last tasks of all are short.
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < tasks; ++task) {
        const int64_t b = task / blocks / shape.heads, h = task / blocks % shape.heads;
        const int64_t t0 = (blocks - 1 - task % blocks) * kQueryBlock;
        forward_block(input, qkv, b, h, t0, std::min(kQueryBlock, shape.sequence_length - t0), out_data, out.stride,
                      lse_data, mine);
      }
    }
  });
}

std::unique_ptr<AttentionOps> make_attention_ops() { return std::make_unique<CpuAttentionOps>(); }

}  // namespace polaron::cpu

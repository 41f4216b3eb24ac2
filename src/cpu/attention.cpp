#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/attention_fp32.h"
#include "cpu/attention_unit.h"
#include "cpu/element.h"
#include "cpu/families.h"
#include "cpu/simd.h"
#include "cpu/simd_math.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// A task is a head and a block of queries; it walks over blocks of kKeyBlock keys. Queries go through in panels, one
// query a vector lane, so that the softmax needs no sums across lanes; a panel's scores stay in the first-level cache.
constexpr int64_t kPanels = 4;
constexpr int64_t kKeyBlock = 128;
template <class Products>
constexpr int64_t kQueryBlock = kPanels* Products::kPanel;

constexpr float kLn2 = 0.693147181F;
// Below every score, and finite, so that the difference of two maxima is never NaN.
constexpr float kNoScore = -1e30F;

// A thread's memory. Scores are in units of log 2: q k^T times `scale` * log2 e.
template <class Products>
struct ForwardScratch {
  static constexpr int64_t kPanel = Products::kPanel;

  ForwardScratch(ScratchCut& cut, const AttentionShape& shape, typename Products::Unit unit)
      : products(cut, shape, kPanels, kKeyBlock, unit),
        sums(cut.take(kPanels * products.sums_rows() * kPanel)),
        max(cut.take(kQueryBlock<Products>)),
        total(cut.take(kQueryBlock<Products>)),
        scores(cut.take(kKeyBlock * kPanel)) {}
  float* panel_sums(int64_t p) const { return sums + p * products.sums_rows() * kPanel; }

  Products products;
  float* sums;    // of a panel: weighted sums of v so far, [products.sums_rows(), kPanel]
  float* max;     // of a query: largest score so far
  float* total;   // of a query: sum of 2^(score - max) so far
  float* scores;  // [keys, kPanel]
};

// Which keys the queries of a panel see, where not all see all: key j is visible to lane i if first[i] <= j <= last[i].
template <int64_t Panel>
struct Visibility {
  alignas(64) std::int32_t first[Panel];
  alignas(64) std::int32_t last[Panel];
};

IntVec load_ints(const std::int32_t* from) {
  IntVec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// weights[j][lane] = 2^(score - new max), with max, total and the sums so far brought to the new maximum. `scale`: what
// scores are still to be multiplied by. Scores that are not weights[] are overwritten.
template <class Products>
void softmax_step(float* scores, typename Products::Weight* weights, int64_t keys, int64_t first_key, float scale,
                  const Visibility<Products::kPanel>* visibility, float* max, float* total, float* sums,
                  int64_t head_size) {
  constexpr int64_t kPanel = Products::kPanel;
  const Vec hidden = broadcast(-INFINITY);
  const auto scaled_score = [scale](const float* score) {
    if constexpr (Products::kScaled) return load_vec(score);
    return load_vec(score) * scale;
  };
  for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
    const Vec before = load_vec(max + lane);
    Vec highest = before;
    if (visibility != nullptr) {
      const IntVec first = load_ints(visibility->first + lane), last = load_ints(visibility->last + lane);
      for (int64_t j = 0; j < keys; ++j) {
        float* const score = scores + j * kPanel + lane;
        const IntVec key = broadcast(static_cast<std::int32_t>(first_key + j));
        const IntVec visible = (key >= first) & (key <= last);
        const Vec s = visible ? scaled_score(score) : hidden;
        store_vec(score, s);
        highest = s > highest ? s : highest;
      }
    } else {
      for (int64_t j = 0; j < keys; ++j) {
        float* const score = scores + j * kPanel + lane;
        const Vec s = scaled_score(score);
        if constexpr (!Products::kScaled) store_vec(score, s);
        highest = s > highest ? s : highest;
      }
    }
    const Vec factor = simd_exp2(before - highest);
    store_vec(max + lane, highest);
    Vec sum = load_vec(total + lane) * factor;
    for (int64_t j = 0; j < keys; ++j) {
      const Vec p = simd_exp2(load_vec(scores + j * kPanel + lane) - highest);
      store_weights(weights + j * kPanel + lane, p);
      sum += p;
    }
    store_vec(total + lane, sum);
    for (int64_t d = 0; d < head_size; ++d) {
      float* const at = sums + d * kPanel + lane;
      store_vec(at, load_vec(at) * factor);
    }
  }
}

// Queries [t0, t0 + count) of head h in sequence b.
template <class Products>
void forward_block(const AttentionInput& in, const typename Products::Element* qkv, int64_t b, int64_t h, int64_t t0,
                   int64_t count, typename Products::Element* out, int64_t out_stride, float* lse,
                   const ForwardScratch<Products>& scratch) {
  constexpr int64_t kPanel = Products::kPanel, kGrain = Products::kGrain;
  static_assert(kKeyBlock % kGrain == 0);
  const Products& products = scratch.products;
  const int64_t size = in.shape.head_size, kv_head = h / in.group(), stride = in.qkv.stride;
  const auto* rows = qkv + in.row(b, 0) * stride;
  const int64_t panels = (count + kPanel - 1) / kPanel;
  const auto width = [&](int64_t p) { return std::min<int64_t>(kPanel, count - p * kPanel); };

  std::fill_n(scratch.max, kQueryBlock<Products>, kNoScore);
  std::fill_n(scratch.total, kQueryBlock<Products>, 0.0F);
  std::fill_n(scratch.sums, panels * products.sums_rows() * kPanel, 0.0F);
  Visibility<kPanel> visibility[kPanels];
  AttentionInput::Range first[kPanels];
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t t = t0 + p * kPanel;
    products.pack_queries(p, rows + t * stride + in.q_column(h), stride, width(p));
    first[p] = in.first_keys(b, t, width(p));
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const int64_t query = t + std::min(lane, width(p) - 1);  // unused lanes repeat the last query
      visibility[p].first[lane] = static_cast<std::int32_t>(in.first_key(b, query));
      visibility[p].last[lane] = static_cast<std::int32_t>(query);
    }
  }

  const int64_t end = t0 + count;
  for (int64_t k0 = in.first_keys(b, t0, count).low; k0 < end; k0 += kKeyBlock) {
    const int64_t k1 = std::min(k0 + kKeyBlock, end);
    products.pack_keys(rows + k0 * stride + in.k_column(kv_head), rows + k0 * stride + in.v_column(kv_head), stride,
                       k1 - k0);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t t = t0 + p * kPanel;
      int64_t low = std::max(k0, first[p].low) - k0, high = std::min(k1, t + width(p)) - k0;
      if (low >= high) continue;
      // Rounded outwards: what that adds is hidden, being before a row's first key or after the row.
      low = low / kGrain * kGrain;
      high = (high + kGrain - 1) / kGrain * kGrain;
      products.multiply_scores(p, low, high, scratch.scores);
      const bool all_visible = k0 + high <= t + 1 && k0 + low >= first[p].high;
      auto* const weights = products.weights(scratch.scores);
      softmax_step<Products>(scratch.scores, weights, high - low, k0 + low, in.shape.scale * kLog2OfE,
                             all_visible ? nullptr : &visibility[p], scratch.max + p * kPanel,
                             scratch.total + p * kPanel, scratch.panel_sums(p), size);
      products.add_weighted(low, high, weights, scratch.panel_sums(p));
    }
  }

  for (int64_t p = 0; p < panels; ++p) {
    const int64_t t = t0 + p * kPanel;
    float *total = scratch.total + p * kPanel, *sums = scratch.panel_sums(p);
    for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
      const Vec weight = load_vec(total + lane), inverse = 1.0F / weight;
      for (int64_t d = 0; d < size; ++d) {
        float* const at = sums + d * kPanel + lane;
        store_vec(at, load_vec(at) * inverse);
      }
      store_vec(total + lane, (load_vec(scratch.max + p * kPanel + lane) + simd_log2(weight)) * kLn2);
    }
    transpose_scaled(sums, kPanel, size, width(p), 1.0F, out + in.row(b, t) * out_stride + in.q_column(h), out_stride);
    std::copy_n(total, width(p), lse + (b * in.shape.heads + h) * in.shape.sequence_length + t);
  }
}

template <class Products>
void run(const AttentionInput& input, const Tensor& out, const Tensor& lse, typename Products::Unit unit,
         ThreadScratch& scratch) {
  using T = typename Products::Element;
  constexpr int64_t kQueries = kQueryBlock<Products>;
  const AttentionShape& shape = input.shape;
  ScratchCut size(nullptr);
  const ForwardScratch<Products> sized(size, shape, unit);
  scratch.reserve(omp_get_max_threads(), size.floats());
  float* const lse_data = lse.f32();
  const int64_t blocks = (shape.sequence_length + kQueries - 1) / kQueries;
  const int64_t tasks = shape.batch * shape.heads * blocks;
  const T* const qkv = elements<T>(input.qkv);
  T* const out_data = elements<T>(out);
#pragma omp parallel
  {
    [[maybe_unused]] const typename Products::Ready ready(unit);
    ScratchCut cut(scratch.for_thread(omp_get_thread_num()));
    const ForwardScratch<Products> mine(cut, shape, unit);
    // Heads one after the other, so that neighbours share keys in cache; the long blocks of a head first, so that the
    // last tasks of all are short.
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t b = task / blocks / shape.heads, h = task / blocks % shape.heads;
      const int64_t t0 = (blocks - 1 - task % blocks) * kQueries;
      forward_block<Products>(input, qkv, b, h, t0, std::min(kQueries, shape.sequence_length - t0), out_data,
                              out.stride, lse_data, mine);
    }
  }
}

class CpuAttentionOps final : public AttentionOps {
 public:
  explicit CpuAttentionOps(const BlockUnit* unit) : unit_(unit) {}
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
    attention_forward(AttentionInput(shape, qkv, first_key), out, lse, unit_, scratch_);
  }
  void backward(Stream&, const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key, const Tensor& out,
                const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv) override {
    attention_backward(AttentionInput(shape, qkv, first_key), out, lse, d_out, d_qkv, unit_, scratch_, delta_);
  }

 private:
  const BlockUnit* unit_;
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

void attention_forward(const AttentionInput& input, const Tensor& out, const Tensor& lse, const BlockUnit* unit,
                       ThreadScratch& scratch) {
  if (unit != nullptr && out.dtype == DType::bf16) return run<UnitForward>(input, out, lse, *unit, scratch);
  with_element_type(out.dtype, "attention forward",
                    [&](auto type) { run<Fp32Forward<decltype(type)>>(input, out, lse, {}, scratch); });
}

std::unique_ptr<AttentionOps> make_attention_ops(const BlockUnit* unit) {
  return std::make_unique<CpuAttentionOps>(unit);
}

std::unique_ptr<AttentionOps> make_attention_ops() { return make_attention_ops(amx_unit()); }

}  // namespace polaron::cpu

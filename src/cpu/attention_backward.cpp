// With S = scale q k^T, P = exp(S - lse), delta = rowsum(d_out * out):
//   dV = P^T dO;   dS = P * (dO V^T - delta);   dQ = scale dS K;   dK = scale dS^T Q
// (Dao et al., FlashAttention, arXiv 2205.14135, appendix B.2). P is computed again from q, k and lse.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/attention.h"
#include "cpu/attention_fp32.h"
#include "cpu/attention_unit.h"
#include "cpu/element.h"
#include "cpu/simd.h"
#include "cpu/simd_math.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// Pairs of blocks of queries and of keys. Both begin at multiples of their size, and kQueryBlock is a multiple of the
// panels of keys and divides kKeyBlock.
constexpr int64_t kQueryBlock = 2 * kTileCols > 64 ? 2 * kTileCols : 64;
constexpr int64_t kKeyBlock = 128;

template <class Products>
struct BackwardScratch {
  // key_sums and query_sums: how many rows of d_k and d_v, and of d_q, are summed here.
  BackwardScratch(ScratchCut& cut, const AttentionShape& shape, int64_t key_sums, int64_t query_sums,
                  typename Products::Unit unit)
      : products(cut, shape, kQueryBlock, kKeyBlock, unit),
        stride(products.stride()),
        scores(cut.take(kQueryBlock * kKeyBlock)),
        d_p(cut.take(kQueryBlock * kKeyBlock)),
        d_k(cut.take(key_sums * stride)),
        d_v(cut.take(key_sums * stride)),
        d_q(cut.take(query_sums * stride)),
        p(products.p(scores)),
        d_s(products.d_s(d_p)) {}

  Products products;
  int64_t stride;  // of the sums
  float* scores;   // [queries, kKeyBlock]: Q K^T
  float* d_p;      // [queries, kKeyBlock]: dO V^T
  float* d_k;      // sums of gradients so far, where the result cannot hold them
  float* d_v;
  float* d_q;
  typename Products::Weight* p;    // [queries, kKeyBlock]: P
  typename Products::Weight* d_s;  // [queries, kKeyBlock]: scale dS
};

struct Block {
  int64_t first, count;
  int64_t end() const { return first + count; }
};

template <class Products>
class Backward {
  using T = typename Products::Element;
  using Weight = typename Products::Weight;
  using Scratch = BackwardScratch<Products>;
  static constexpr int64_t kPanel = Products::kPanel;
  static_assert(kQueryBlock % kPanel == 0 && kKeyBlock % kQueryBlock == 0);

 public:
  // Whether gradients are summed in d_qkv itself. Sums of bf16 would be rounded at every step: they grow in scratch and
  // are rounded when complete.
  static constexpr bool kInPlace = std::is_same_v<T, float>;

  Backward(const AttentionInput& in, const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv,
           const std::vector<float>& delta)
      : in_(in),
        qkv_(elements<T>(in.qkv)),
        lse_(lse.f32()),
        d_out_(elements<T>(d_out)),
        d_out_stride_(d_out.stride),
        d_qkv_(elements<T>(d_qkv)),
        d_qkv_stride_(d_qkv.stride),
        delta_(delta.data()) {}

  Block key_block(int64_t i) const { return block(i, kKeyBlock); }
  Block query_block(int64_t i) const { return block(i, kQueryBlock); }
  int64_t key_blocks() const { return (in_.shape.sequence_length + kKeyBlock - 1) / kKeyBlock; }
  int64_t query_blocks() const { return (in_.shape.sequence_length + kQueryBlock - 1) / kQueryBlock; }

  // What a thread that works on whole heads needs, or on blocks of keys or queries.
  Scratch scratch(ScratchCut& cut, bool whole_heads, typename Products::Unit unit) const {
    const int64_t query_sums = whole_heads ? in_.group() * head_rows() : kQueryBlock;
    return {cut, in_.shape, kInPlace ? 0 : kKeyBlock, kInPlace ? 0 : query_sums, unit};
  }

  // All gradients of a key head and its query heads.
  void head(int64_t b, int64_t kv_head, const Scratch& scratch) const {
    for (int64_t i = 0; i < key_blocks(); ++i) keys(b, kv_head, key_block(i), true, scratch);
  }

  // Gradients of k and v of one block of keys, from all queries of all heads of its group; with `with_d_q` what the
  // block contributes to their gradients too, which asks for the blocks of keys one after the other.
  void keys(int64_t b, int64_t kv_head, const Block& keys, bool with_d_q, const Scratch& scratch) const {
    pack_keys(b, kv_head, keys, scratch.products);
    const Sums d_k = sums(b, keys.first, in_.k_column(kv_head), scratch.d_k, scratch.stride);
    const Sums d_v = sums(b, keys.first, in_.v_column(kv_head), scratch.d_v, scratch.stride);
    for (int64_t g = 0; g < in_.group(); ++g) {
      for (int64_t i = keys.first / kQueryBlock; i < query_blocks(); ++i) {
        const Block queries = query_block(i);
        const int64_t seen = in_.first_keys(b, queries.first, queries.count).low;
        if (seen >= keys.end()) continue;
        const int64_t h = kv_head * in_.group() + g;
        const Pair pair = start(b, h, queries, keys, seen, scratch);
        add_d_k_and_v(pair, d_k, d_v, g == 0, scratch);
        if (!with_d_q) continue;
        float* const memory = kInPlace ? nullptr : scratch.d_q + (g * head_rows() + queries.first) * scratch.stride;
        const Sums d_q = sums(b, queries.first, in_.q_column(h), memory, scratch.stride);
        add_d_q(pair, d_q, scratch);
        if (!pair.all_before()) finish(d_q, b, queries, in_.q_column(h));  // no later keys for these queries
      }
    }
    finish(d_k, b, keys, in_.k_column(kv_head));
    finish(d_v, b, keys, in_.v_column(kv_head));
  }

  // Gradient of q of one block of queries.
  void queries(int64_t b, int64_t h, const Block& queries, const Scratch& scratch) const {
    const int64_t seen = in_.first_keys(b, queries.first, queries.count).low;
    const Sums d_q = sums(b, queries.first, in_.q_column(h), scratch.d_q, scratch.stride);
    for (int64_t i = seen / kKeyBlock; i < key_blocks() && key_block(i).first < queries.end(); ++i) {
      const Block keys = key_block(i);
      pack_keys(b, h / in_.group(), keys, scratch.products);
      add_d_q(start(b, h, queries, keys, seen, scratch), d_q, scratch);
    }
    finish(d_q, b, queries, in_.q_column(h));
  }

 private:
  // Panels [first_panel, panels) of the keys matter to the queries; all earlier keys are out of everyone's sight.
  struct Pair {
    Block queries, keys;
    int64_t first_panel, panels;
    int64_t seen;  // first key that any of the queries sees

    int64_t panel_key(int64_t p) const { return keys.first + p * kPanel; }
    int64_t panel_keys(int64_t p) const { return std::min<int64_t>(kPanel, keys.end() - panel_key(p)); }
    // The first query that sees anything of panel p, relative to the block.
    int64_t first_query(int64_t p) const { return std::max<int64_t>(panel_key(p) - queries.first, 0); }
    bool all_before() const { return keys.end() <= queries.first; }
  };

  Block block(int64_t i, int64_t size) const {
    return {i * size, std::min(size, in_.shape.sequence_length - i * size)};
  }
  // Rows of d_q's sums of a head: products may write to the end of a block, whose rows behind the last are nobody's.
  int64_t head_rows() const { return query_blocks() * kQueryBlock; }
  const T* qkv(int64_t b, int64_t t, int64_t column) const { return qkv_ + in_.row(b, t) * in_.qkv.stride + column; }
  T* d_qkv(int64_t b, int64_t t, int64_t column) const { return d_qkv_ + in_.row(b, t) * d_qkv_stride_ + column; }

  // Where gradients of the rows of sequence b from t on are summed.
  Sums sums(int64_t b, int64_t t, int64_t column, float* memory, int64_t stride) const {
    if constexpr (kInPlace) {
      return {d_qkv(b, t, column), d_qkv_stride_};
    } else {
      return {memory, stride};
    }
  }

  // Complete sums to the result.
  void finish(const Sums& sums, int64_t b, const Block& block, int64_t column) const {
    if constexpr (!kInPlace) {
      const int64_t size = in_.shape.head_size;
      for (int64_t i = 0; i < block.count; ++i) {
        const float* const from = sums.row(i);
        T* const to = d_qkv(b, block.first + i, column);
        int64_t c = 0;
        for (; c + kLanes <= size; c += kLanes) store_vec(to + c, load_vec(from + c));
        for (; c < size; ++c) store(to + c, from[c]);
      }
    }
  }

  void pack_keys(int64_t b, int64_t kv_head, const Block& keys, const Products& products) const {
    products.pack_keys(qkv(b, keys.first, in_.k_column(kv_head)), qkv(b, keys.first, in_.v_column(kv_head)),
                       in_.qkv.stride, keys.count);
  }

  // P and scale dS of a pair, zero where a query does not see a key.
  Pair start(int64_t b, int64_t h, const Block& queries, const Block& keys, int64_t seen,
             const Scratch& scratch) const {
    const int64_t end = std::min(keys.end(), queries.end());  // keys from here on are in the future of all
    const Pair pair{queries, keys, std::max<int64_t>(seen - keys.first, 0) / kPanel,
                    (end - keys.first + kPanel - 1) / kPanel, seen};
    scratch.products.pack_queries(qkv(b, queries.first, in_.q_column(h)), in_.qkv.stride,
                                  d_out_ + in_.row(b, queries.first) * d_out_stride_ + in_.q_column(h), d_out_stride_,
                                  queries.count);
    for (int64_t p = pair.first_panel; p < pair.panels; ++p) {
      scratch.products.multiply_scores(pair.first_query(p), queries.count, p * kPanel, scratch.scores, scratch.d_p);
    }
    const float* lse = lse_ + (b * in_.shape.heads + h) * in_.shape.sequence_length;
    const float* delta = delta_ + (b * in_.shape.heads + h) * in_.shape.sequence_length;
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t t = queries.first + i;
      const int64_t at = i * kKeyBlock;
      finish_row(pair, in_.first_key(b, t), t, lse[t], delta[t], scratch.scores + at, scratch.d_p + at, scratch.p + at,
                 scratch.d_s + at);
    }
    return pair;
  }

  // scores, dO V^T -> P, scale dS for query t.
  void finish_row(const Pair& pair, int64_t first_key, int64_t t, float lse, float delta, const float* scores,
                  const float* d_p, Weight* p, Weight* d_s) const {
    const int64_t begin = pair.first_panel * kPanel, end = pair.panels * kPanel;
    const int64_t low = std::clamp(first_key - pair.keys.first, begin, end);
    const int64_t high = std::clamp(t + 1 - pair.keys.first, low, end);
    const float scale = in_.shape.scale, scale_log2 = scale * kLog2OfE, lse_log2 = lse * kLog2OfE;
    // Whole vectors; what lies outside [low, high) is overwritten below.
    for (int64_t c = low / kLanes * kLanes; c < high; c += kLanes) {
      const Vec probability = simd_exp2(load_vec(scores + c) * scale_log2 - lse_log2);
      store_weights(p + c, probability);
      store_weights(d_s + c, probability * (load_vec(d_p + c) - delta) * scale);
    }
    for (Weight* row : {p, d_s}) {
      std::fill(row + begin, row + low, Weight{});
      std::fill(row + high, row + end, Weight{});
    }
  }

  void add_d_k_and_v(const Pair& pair, const Sums& d_k, const Sums& d_v, bool first_head,
                     const Scratch& scratch) const {
    const auto add = [&](int64_t query, int64_t key, int64_t end, bool accumulate) {
      scratch.products.add_d_k_and_v(query, pair.queries.count, key, end, scratch.p, scratch.d_s, d_k, d_v, accumulate);
    };
    if (pair.all_before()) {  // and so not the first pair of any panel
      return add(0, pair.first_panel * kPanel, pair.keys.count, true);
    }
    for (int64_t p = pair.first_panel; p < pair.panels; ++p) {
      // The queries at the panel's own tokens are the first that see it.
      const bool first = first_head && pair.panel_key(p) >= pair.queries.first;
      add(pair.first_query(p), p * kPanel, p * kPanel + pair.panel_keys(p), !first);
    }
  }

  void add_d_q(const Pair& pair, const Sums& d_q, const Scratch& scratch) const {
    const bool accumulate = pair.keys.first > pair.seen;
    const int64_t key = pair.first_panel * kPanel;
    // Against keys of their own time, some queries at a time, each as far as the last of them sees.
    const int64_t step = pair.all_before() ? pair.queries.count : kPanel;
    for (int64_t query = 0; query < pair.queries.count; query += step) {
      const int64_t last = std::min(query + step, pair.queries.count);
      const int64_t end = std::min(pair.keys.end(), pair.queries.first + last) - pair.keys.first;
      if (end <= key) continue;
      scratch.products.add_d_q(query, last, key, end, scratch.d_s, d_q, accumulate);
    }
  }

  const AttentionInput& in_;
  const T* qkv_;
  const float* lse_;
  const T* d_out_;
  int64_t d_out_stride_;
  T* d_qkv_;
  int64_t d_qkv_stride_;
  const float* delta_;
};

// delta[b, h, t] = sum over the head of d_out * out.
template <class T>
void row_sums(const AttentionInput& in, const Tensor& out, const Tensor& d_out, std::vector<float>& delta) {
  const AttentionShape& shape = in.shape;
  delta.resize(static_cast<std::size_t>(shape.batch * shape.heads * shape.sequence_length));
  const T *o = elements<T>(out), *d = elements<T>(d_out);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < shape.batch * shape.sequence_length; ++row) {
    const int64_t b = row / shape.sequence_length, t = row % shape.sequence_length;
    for (int64_t h = 0; h < shape.heads; ++h) {
      const T *x = o + row * out.stride + in.q_column(h), *y = d + row * d_out.stride + in.q_column(h);
      Vec sums{};
      int64_t c = 0;
      for (; c + kLanes <= shape.head_size; c += kLanes) sums += load_vec(x + c) * load_vec(y + c);
      float sum = 0.0F;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
      for (; c < shape.head_size; ++c) sum += load(x + c) * load(y + c);
      delta[static_cast<std::size_t>((b * shape.heads + h) * shape.sequence_length + t)] = sum;
    }
  }
}

template <class Products>
void run(const AttentionInput& input, const Tensor& out, const Tensor& lse, const Tensor& d_out, const Tensor& d_qkv,
         typename Products::Unit unit, ThreadScratch& scratch, std::vector<float>& delta) {
  const AttentionShape& shape = input.shape;
  const int threads = omp_get_max_threads();
  row_sums<typename Products::Element>(input, out, d_out, delta);
  const Backward<Products> backward(input, lse, d_out, d_qkv, delta);
  const int64_t key_blocks = backward.key_blocks(), query_blocks = backward.query_blocks();

  // One pass, a key head a task: 5 products a pair of blocks, but no more tasks than key heads. Two passes: 7 products,
  // and tasks for any number of threads. Both add the same numbers in the same order.
  const int64_t heads = shape.batch * shape.kv_heads;
  const int64_t rounds = (heads + threads - 1) / threads;
  const bool one_pass = key_blocks == 1 || 5 * rounds * threads <= 7 * heads;
  ScratchCut size(nullptr);
  backward.scratch(size, one_pass, unit);
  scratch.reserve(threads, size.floats());
#pragma omp parallel
  {
    [[maybe_unused]] const typename Products::Ready ready(unit);
    ScratchCut cut(scratch.for_thread(omp_get_thread_num()));
    const BackwardScratch<Products> mine = backward.scratch(cut, one_pass, unit);
    if (one_pass) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < heads; ++task) backward.head(task / shape.kv_heads, task % shape.kv_heads, mine);
    } else {
      // Long tasks first: early keys have many queries, late queries many keys.
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < heads * key_blocks; ++task) {
        const int64_t head = task % heads, i = task / heads;
        backward.keys(head / shape.kv_heads, head % shape.kv_heads, backward.key_block(i), false, mine);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < shape.batch * shape.heads * query_blocks; ++task) {
        const int64_t head = task % (shape.batch * shape.heads), i = task / (shape.batch * shape.heads);
        backward.queries(head / shape.heads, head % shape.heads, backward.query_block(query_blocks - 1 - i), mine);
      }
    }
  }
}

}  // namespace

void attention_backward(const AttentionInput& input, const Tensor& out, const Tensor& lse, const Tensor& d_out,
                        const Tensor& d_qkv, const BlockUnit* unit, ThreadScratch& scratch, std::vector<float>& delta) {
  if (unit != nullptr && d_qkv.dtype == DType::bf16)
    return run<UnitBackward>(input, out, lse, d_out, d_qkv, *unit, scratch, delta);
  with_element_type(d_qkv.dtype, "attention backward", [&](auto type) {
    run<Fp32Backward<decltype(type)>>(input, out, lse, d_out, d_qkv, {}, scratch, delta);
  });
}

}  // namespace polaron::cpu

#include <algorithm>

#include "cuda/device.h"
#include "cuda/element.h"
#include "cuda/families.h"
#include "cuda/sort.h"

namespace polaron::cuda {
namespace {

// All of these are bound by memory. Forward reads a row of each table and writes a row of the result. Backward reads
// d_out twice (once a table) and reads and writes the rows of the gradients that occur. Rows are cut over threads, a
// pack each.
constexpr int kMostThreads = 128;
// Rows of d_out that one block of backward adds up: enough blocks for a device, few enough partial sums.
constexpr std::int64_t kChunk = 64;

template <class T>
struct Table {
  T* data;
  std::int64_t rows, stride;
  __device__ T* row(std::int64_t n) const { return data + n * stride; }
};
template <class T>
Table<T> table_of(const Tensor& tensor) {
  return {elements<T>(tensor), tensor.rows, tensor.stride};
}

// A token outside of the table gives a row of NaN: the step's gate then refuses the update.
template <class T, int pack>
__global__ void embedding_forward(const std::int32_t* tokens, const Table<T> table, const Table<T> positions,
                                  std::int64_t sequence_length, const Table<T> out, std::int64_t width) {
  const std::int64_t n = blockIdx.x;
  const std::int32_t token = tokens[n];
  const bool known = token >= 0 && token < table.rows;
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * pack; c < width; c += blockDim.x * pack) {
    const std::int64_t count = width - c;
    float sum[pack];
    if (known) load(table.row(token) + c, count, sum);
#pragma unroll
    for (int i = 0; i < pack; ++i) sum[i] = known ? sum[i] : __builtin_nanf("");
    if (positions.data != nullptr) {
      float position[pack];
      load(positions.row(n % sequence_length) + c, count, position);
#pragma unroll
      for (int i = 0; i < pack; ++i) sum[i] += position[i];
    }
    store(out.row(n) + c, count, sum);
  }
}

template <int pack>
__device__ void add(const float* from, std::int64_t count, float (&to)[pack]) {
  float values[pack];
  load(from, count, values);
#pragma unroll
  for (int i = 0; i < pack; ++i) to[i] += values[i];
}

// position_grad[t] += sum over sequences of d_out[b * T + t].
template <class T, int pack>
__global__ void embedding_position_backward(const Table<T> d_out, std::int64_t sequence_length, const Table<float> grad,
                                            std::int64_t width) {
  const std::int64_t t = blockIdx.x;
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * pack; c < width; c += blockDim.x * pack) {
    const std::int64_t count = width - c;
    float sum[pack] = {};
    for (std::int64_t n = t; n < d_out.rows; n += sequence_length) {
      float row[pack];
      load(d_out.row(n) + c, count, row);
#pragma unroll
      for (int i = 0; i < pack; ++i) sum[i] += row[i];
    }
    add(grad.row(t) + c, count, sum);
    store(grad.row(t) + c, count, sum);
  }
}

// The rows of d_out in the order of their tokens; equal tokens are a segment, in the order of the rows.
struct Segments {
  const std::int32_t *order, *tokens;  // row and token of each place
  std::int64_t count;
  float *head, *tail;  // [chunks, stride] each
  std::int64_t stride;
  std::int32_t vocabulary;

  __device__ bool continues(std::int64_t place) const {  // whether a segment goes on from the place before
    return place > 0 && place < count && tokens[place] == tokens[place - 1];
  }
};

// Each block adds up the segments of one chunk of places. Segments that lie within it go to the gradient; what belongs
// to a segment of earlier chunks goes to `head`, and what begins here and goes on to `tail`. A token however frequent
// is so spread over many blocks, and no two blocks write the same row.
template <class T, int pack>
__global__ void embedding_token_chunks(const Segments segments, const Table<T> d_out, const Table<float> grad,
                                       std::int64_t width) {
  const std::int64_t chunk = blockIdx.x, first = chunk * kChunk;
  const std::int64_t end = first + kChunk < segments.count ? first + kChunk : segments.count;
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * pack; c < width; c += blockDim.x * pack) {
    const std::int64_t left = width - c;
    float sum[pack] = {};
    bool from_before = segments.continues(first);
    for (std::int64_t place = first; place < end; ++place) {
      float row[pack];
      load(d_out.row(segments.order[place]) + c, left, row);
#pragma unroll
      for (int i = 0; i < pack; ++i) sum[i] += row[i];
      const bool goes_on = segments.continues(place + 1);
      if (goes_on && place + 1 < end) continue;
      const std::int32_t token = segments.tokens[place];
      if (from_before) {
        store(segments.head + chunk * segments.stride + c, left, sum);
      } else if (goes_on) {
        store(segments.tail + chunk * segments.stride + c, left, sum);
      } else if (token < segments.vocabulary) {
        float* const to = grad.row(token) + c;
        add(to, left, sum);
        store(to, left, sum);
      }
      from_before = false;
#pragma unroll
      for (int i = 0; i < pack; ++i) sum[i] = 0.0F;
    }
  }
}

// Where a segment begins in this block's chunk and goes on: its tail and the heads of the chunks after it, in their
// order.
template <int pack>
__global__ void embedding_token_joints(const Segments segments, const Table<float> grad, std::int64_t width) {
  const std::int64_t chunk = blockIdx.x, next = (chunk + 1) * kChunk;
  if (!segments.continues(next)) return;
  const std::int32_t token = segments.tokens[next];
  if (token >= segments.vocabulary) return;
  if (segments.continues(chunk * kChunk) && segments.tokens[chunk * kChunk] == token) return;  // began before
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * pack; c < width; c += blockDim.x * pack) {
    const std::int64_t left = width - c;
    float sum[pack];
    load(segments.tail + chunk * segments.stride + c, left, sum);
    for (std::int64_t other = chunk + 1; other * kChunk < segments.count && segments.tokens[other * kChunk] == token;
         ++other) {
      add(segments.head + other * segments.stride + c, left, sum);
    }
    float* const to = grad.row(token) + c;
    add(to, left, sum);
    store(to, left, sum);
  }
}

Grid rows_and_packs(Stream& stream, std::int64_t rows, std::int64_t width, int pack) {
  const std::int64_t threads = std::min<std::int64_t>(ceil_div(ceil_div(width, pack), 32) * 32, kMostThreads);
  return {dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(threads)), handle_of(stream)};
}

// Numbers that the backward pass keeps.
std::int64_t order_integers(std::int64_t rows) { return 2 * rows + sort_scratch(rows); }
std::int64_t partial_stride(std::int64_t width) { return ceil_div(width, std::int64_t{4}) * 4; }
std::int64_t partial_floats(std::int64_t rows, std::int64_t width) {
  return 2 * ceil_div(rows, kChunk) * partial_stride(width);
}

class CudaEmbedding final : public EmbeddingOps {
 public:
  explicit CudaEmbedding(Device& device) : order_(device), partial_(device) {}

  void forward(Stream& stream, const Tensor& tokens, const Tensor& token_table, const Tensor& position_table,
               std::int64_t sequence_length, const Tensor& out) override {
    with_element_type(out.dtype, "embedding forward", [&](auto type) {
      using T = decltype(type);
      with_pack<T>(aligned_rows({token_table, position_table, out}), [&](auto pack) {
        launch<embedding_forward<T, pack()>>(rows_and_packs(stream, out.rows, out.cols, pack), tokens.i32(),
                                             table_of<T>(token_table), table_of<T>(position_table), sequence_length,
                                             table_of<T>(out), out.cols);
      });
    });
  }

  void backward(Stream& stream, const Tensor& tokens, const Tensor& d_out, std::int64_t sequence_length,
                const Tensor& token_grad, const Tensor& position_grad) override {
    const std::int64_t rows = d_out.rows, width = d_out.cols, chunks = ceil_div(rows, kChunk);
    const std::int64_t stride = partial_stride(width);
    auto* const order = order_.room<std::int32_t>(order_integers(rows));
    auto* const sorted = order + rows;
    const auto vocabulary = static_cast<std::int32_t>(token_grad.rows);
    sort_by_key(stream, tokens.i32(), rows, vocabulary, order, sorted, sorted + rows);
    auto* const partial = partial_.room<float>(partial_floats(rows, width));
    const Segments segments{order, sorted, rows, partial, partial + chunks * stride, stride, vocabulary};
    with_element_type(d_out.dtype, "embedding backward", [&](auto type) {
      using T = decltype(type);
      with_pack<T>(aligned_rows({d_out, token_grad, position_grad}), [&](auto pack) {
        launch<embedding_token_chunks<T, pack()>>(rows_and_packs(stream, chunks, width, pack), segments,
                                                  table_of<T>(d_out), table_of<float>(token_grad), width);
        launch<embedding_token_joints<pack()>>(rows_and_packs(stream, chunks, width, pack), segments,
                                               table_of<float>(token_grad), width);
        if (position_grad) {
          const std::int64_t positions = std::min(sequence_length, rows);
          launch<embedding_position_backward<T, pack()>>(rows_and_packs(stream, positions, width, pack),
                                                         table_of<T>(d_out), sequence_length,
                                                         table_of<float>(position_grad), width);
        }
      });
    });
  }

 private:
  Scratch order_, partial_;
};

}  // namespace

std::int64_t embedding_scratch_bytes(const Workload& workload) {
  std::int64_t widest = 0;
  for (const std::int64_t columns : workload.tables) widest = std::max(widest, columns);
  return 4 * (order_integers(workload.rows()) + partial_floats(workload.rows(), widest));
}

std::unique_ptr<EmbeddingOps> make_embedding_ops(Device& device) { return std::make_unique<CudaEmbedding>(device); }

}  // namespace polaron::cuda

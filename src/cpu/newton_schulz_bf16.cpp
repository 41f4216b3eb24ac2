// Newton-Schulz orthogonalization of one matrix X [rows, cols], rows <= cols, in bf16: A = X X^T, B = b A + c A A,
// X <- a X + B X, each of the three rounded to bf16 where it is complete, and summed in fp32.
//
// A and B are symmetric to the bit, since an element and its mirror image are sums of the same products in the same
// order: blocks on and below the diagonal are computed, the others copied. The right operand of each product is packed
// a chunk at a time, which stays in the second-level cache while all strips of rows meet it. Runs of steps on the Gram
// matrix alone, as the fp32 path has them, would square the rounding errors of bf16 and are not for it.
#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "backend/newton_schulz_runs.h"
#include "cpu/gemm_bf16.h"
#include "cpu/gemm_unit.h"
#include "cpu/matrix_kernels.h"

namespace polaron::cpu {
namespace {

using std::int64_t;

// A chunk is as wide as fits here, within bounds: narrower ones would add up sums in memory too often, wider ones
// outgrow the caches with their results.
constexpr int64_t kChunkBytes = 768 * 1024;
constexpr int64_t kLeastChunk = 256, kMostChunk = 512;
constexpr int64_t kLine = 64;

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Rows are an odd number of cache lines apart, so that those of a block fall on different cache sets.
int64_t stride_of(int64_t cols) { return (blocks_of(cols) | 1) * kBlock; }

class Iteration {
 public:
  // With null memory only its size.
  Iteration(const BlockUnit& unit, int64_t rows, int64_t cols, int threads, float* memory)
      : unit_(unit),
        rows_(rows),
        cols_(cols),
        threads_(threads),
        x_stride_(stride_of(cols)),
        stride_(stride_of(rows)),
        chunk_(std::min(chunk_of(unit, rows), blocks_of(cols) * kBlock)) {
    const auto first = reinterpret_cast<std::uintptr_t>(memory);
    char* const aligned = reinterpret_cast<char*>((first + kLine - 1) / kLine * kLine);
    const auto take = [&](int64_t bytes) {
      const int64_t offset = bytes_;
      bytes_ += (bytes + kLine - 1) / kLine * kLine;
      return memory == nullptr ? nullptr : aligned + offset;
    };
    x_ = reinterpret_cast<bf16*>(take(rows * x_stride_ * 2));
    gram_ = reinterpret_cast<bf16*>(take(rows * stride_ * 2));
    polynomial_ = reinterpret_cast<bf16*>(take(rows * stride_ * 2));
    sums_ = reinterpret_cast<float*>(take(rows * stride_ * 4));
    packed_ = take(packed_panels_bytes(unit, chunk_, rows));  // as many as for a chunk of the depth and `rows` columns
    own_scratch_ = kBlock * chunk_ * 4;
    own_bytes_ = own_scratch_ + block_scratch_bytes(unit, std::max(rows, chunk_));
    own_ = take(threads * own_bytes_);
    bytes_ += kLine;  // memory may begin anywhere
  }
  // Whole cache lines.
  int64_t bytes() const { return bytes_; }

  void load(const float* x) const {
    each_strip([&](const Strip& strip) {
      for (int64_t r = strip.row; r < strip.end(); ++r) to_bf16s(x + r * cols_, cols_, x_ + r * x_stride_);
    });
  }
  void step(const NewtonSchulzRow& row) const {
    multiply_gram();
    multiply_polynomial(row);
    multiply_x(row);
  }
  void store(float* x) const {
    each_strip([&](const Strip& strip) {
      for (int64_t r = strip.row; r < strip.end(); ++r) to_floats(x_ + r * x_stride_, cols_, x + r * cols_);
    });
  }

 private:
  // A block of rows, and its thread's memory.
  struct Strip {
    int64_t row, rows;
    float* sums;  // [kBlock, chunk_]
    void* scratch;
    int64_t end() const { return row + rows; }
  };

  static int64_t chunk_of(const BlockUnit& unit, int64_t rows) {
    const int64_t column = blocks_of(rows) * kBlock * unit.packed_bytes();
    return std::clamp(kChunkBytes / column / kBlock * kBlock, kLeastChunk, kMostChunk);
  }

  // Calls body(i, thread) for i < count, from the last on: strips low in a triangle are the long ones.
  template <class Body>
  void each(int64_t count, Body&& body) const {
#pragma omp parallel num_threads(threads_)
    {
      const UnitScope ready(unit_);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < count; ++i) body(count - 1 - i, omp_get_thread_num());
    }
  }
  template <class Body>
  void each_strip(Body&& body) const {
    each(blocks_of(rows_), [&](int64_t i, int thread) {
      char* const own = own_ + thread * own_bytes_;
      body(Strip{i * kBlock, std::min(kBlock, rows_ - i * kBlock), reinterpret_cast<float*>(own), own + own_scratch_});
    });
  }
  // B' [depth, cols] packed for all strips.
  void pack(const bf16* b, int64_t stride, bool transposed, int64_t cols, int64_t depth) const {
    each(blocks_of(cols), [&](int64_t i, int) {
      const int64_t col = i * kBlock;
      pack_panels(unit_, transposed ? b + col * stride : b + col, stride, transposed, std::min(kBlock, cols - col),
                  depth, packed_ + packed_panels_bytes(unit_, col, depth));
    });
  }
  // Columns [first, last) of a strip below the diagonal of a symmetric matrix, copied to above it.
  void mirror(bf16* matrix, const Strip& strip, int64_t first, int64_t last) const {
    for (int64_t c = first; c < std::min(last, strip.row); ++c) {
      for (int64_t r = strip.row; r < strip.end(); ++r) matrix[c * stride_ + r] = matrix[r * stride_ + c];
    }
  }

  // A = X X^T, in chunks of the depth.
  void multiply_gram() const {
    for (int64_t first = 0; first < cols_; first += chunk_) {
      const int64_t depth = std::min(chunk_, cols_ - first);
      pack(x_ + first, x_stride_, true, rows_, depth);
      each_strip([&](const Strip& strip) {
        float* const sums = sums_ + strip.row * stride_;
        multiply_block(unit_, strip.rows, strip.end(), depth, x_ + strip.row * x_stride_ + first, x_stride_, packed_,
                       sums, stride_, first > 0, strip.scratch);
        if (first + depth < cols_) return;
        for (int64_t r = 0; r < strip.rows; ++r) {
          to_bf16s(sums + r * stride_, strip.end(), gram_ + (strip.row + r) * stride_);
        }
        mirror(gram_, strip, 0, strip.row);
      });
    }
  }

  // B = b A + c A A, in chunks of its columns.
  void multiply_polynomial(const NewtonSchulzRow& row) const {
    for (int64_t first = 0; first < rows_; first += chunk_) {
      const int64_t last = std::min(rows_, first + chunk_);
      pack(gram_ + first, stride_, false, last - first, rows_);
      each_strip([&](const Strip& strip) {
        const int64_t cols = std::min(strip.end(), last) - first;
        if (cols <= 0) return;
        const bf16* const gram = gram_ + strip.row * stride_;
        multiply_block(unit_, strip.rows, cols, rows_, gram, stride_, packed_, strip.sums, chunk_, false,
                       strip.scratch);
        for (int64_t r = 0; r < strip.rows; ++r) {
          float* const sums = strip.sums + r * chunk_;
          add(row.b, gram + r * stride_ + first, row.c, cols, sums);
          to_bf16s(sums, cols, polynomial_ + (strip.row + r) * stride_ + first);
        }
        mirror(polynomial_, strip, first, last);
      });
    }
  }

  // X <- a X + B X, in chunks of its columns, in place: a chunk of the result needs that chunk of X alone.
  void multiply_x(const NewtonSchulzRow& row) const {
    for (int64_t first = 0; first < cols_; first += chunk_) {
      const int64_t cols = std::min(chunk_, cols_ - first);
      pack(x_ + first, x_stride_, false, cols, rows_);
      each_strip([&](const Strip& strip) {
        multiply_block(unit_, strip.rows, cols, rows_, polynomial_ + strip.row * stride_, stride_, packed_, strip.sums,
                       chunk_, false, strip.scratch);
        for (int64_t r = 0; r < strip.rows; ++r) {
          bf16* const x = x_ + (strip.row + r) * x_stride_ + first;
          float* const sums = strip.sums + r * chunk_;
          add(row.a, x, 1.0F, cols, sums);
          to_bf16s(sums, cols, x);
        }
      });
    }
  }

  // sums = factor matrix + sums_factor sums.
  static void add(float factor, const bf16* matrix, float sums_factor, int64_t n, float* sums) {
    for (int64_t i = 0; i < n; ++i) sums[i] = factor * to_float(matrix[i]) + sums_factor * sums[i];
  }

  const BlockUnit& unit_;
  int64_t rows_, cols_;
  int threads_;
  int64_t x_stride_, stride_, chunk_;
  int64_t bytes_ = 0;
  bf16 *x_, *gram_, *polynomial_;  // X [rows, cols], A and B [rows, rows]
  float* sums_;                    // of A
  char* packed_;
  char* own_;  // of each thread: sums of a strip, and what multiply_block() works in
  int64_t own_bytes_, own_scratch_;
};

}  // namespace

int64_t newton_schulz_bf16_floats(const BlockUnit& unit, int64_t rows, int64_t cols, int threads) {
  return Iteration(unit, rows, cols, threads, nullptr).bytes() / 4;
}

void newton_schulz_bf16(const BlockUnit& unit, const NewtonSchulzSpec& spec, int64_t rows, int64_t cols, float* x,
                        float* scratch, int threads) {
  const double divisor = divisor_of(spec, rows, cols, x);
  if (divisor == 0.0) return;
  const Iteration iteration(unit, rows, cols, threads, scratch);
  scale(x, 1.0 / divisor, x, rows * cols);
  iteration.load(x);
  for (int step = 0; step < spec.steps; ++step) iteration.step(row_of(spec, step));
  iteration.store(x);
}

}  // namespace polaron::cpu

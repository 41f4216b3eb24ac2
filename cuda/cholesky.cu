// Inverse Cholesky factors of a batch of small matrices, in tiles that fit into shared memory. One launch a column of
// tiles of the factor, one block a tile: each finds the column's diagonal tile for itself, which costs no time, since
// nothing can go on without it. Then one block a column of tiles of the inverse. The inverse is wanted because a
// product with it, unlike a triangular solve, runs at the device's full rate.
#include "cuda/element.h"
#include "cuda/matrix.h"
#include "cuda/reduce.h"

namespace polaron::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kThreads = 256;
constexpr int kEach = 4;               // a thread has kEach x kEach elements of a tile,
constexpr int kApart = kTile / kEach;  // so far apart
constexpr int kRowsATurn = kThreads / kTile;

// One column more, so that neighbours in a column lie in different banks.
using Tile = float[kTile][kTile + 1];

struct Shared {
  Tile left, right;
  float column[kTile], row[kTile];
  double sums[kThreads / 32];
};

// What a thread has of a tile: rows y + kApart i, columns x + kApart j.
struct Part {
  float values[kEach][kEach] = {};
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / kApart + kApart * i; }
  __device__ static int col(int j) { return static_cast<int>(threadIdx.x) % kApart + kApart * j; }
};

template <class Body>
__device__ __forceinline__ void for_part(Body&& body) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) body(i, j, Part::row(i), Part::col(j));
  }
}

// part += left right, or left right^T.
template <bool transposed>
__device__ __forceinline__ void add_product(const Tile& left, const Tile& right, Part& part) {
#pragma unroll 4
  for (int k = 0; k < kTile; ++k) {
    float a[kEach], b[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) a[i] = left[Part::row(i)][k];
#pragma unroll
    for (int j = 0; j < kEach; ++j) b[j] = transposed ? right[Part::col(j)][k] : right[k][Part::col(j)];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) part.values[i][j] += a[i] * b[j];
    }
  }
}

// Tile (i, j) of a [rank, rank] matrix; zero outside of it.
__device__ __forceinline__ void load_tile(const float* matrix, std::int64_t rank, std::int64_t i, std::int64_t j,
                                          Tile& to) {
  const int c = static_cast<int>(threadIdx.x) % kTile;
  for (int r = static_cast<int>(threadIdx.x) / kTile; r < kTile; r += kRowsATurn) {
    const std::int64_t row = i * kTile + r, col = j * kTile + c;
    to[r][c] = row < rank && col < rank ? matrix[row * rank + col] : 0.0F;
  }
}

// A whole tile in memory, kTile * kTile elements.
__device__ __forceinline__ void load_inverse(const float* tile, Tile& to) {
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) to[e / kTile][e % kTile] = tile[e];
}

// value(i, j, row, col) for each element of the thread's part -> tile (i, j) of the matrix.
template <class Value>
__device__ __forceinline__ void store_tile(float* matrix, std::int64_t rank, std::int64_t tile_row,
                                           std::int64_t tile_col, Value&& value) {
  for_part([&](int i, int j, int r, int c) {
    const std::int64_t row = tile_row * kTile + r, col = tile_col * kTile + c;
    if (row < rank && col < rank) matrix[row * rank + col] = value(i, j, r, c);
  });
}

// w: lower triangle of a symmetric tile, zeros above -> L^-1 of it, in place. At step j columns right of j hold what is
// left of the tile and those up to j the inverse so far: both lose column j of L times row j. From `size` on the tile
// is the identity.
__device__ void invert_factor(int size, Tile& w, float (&column)[kTile], float (&row)[kTile]) {
  const int t = static_cast<int>(threadIdx.x), c = t % kTile;
  for (int j = 0; j < size; ++j) {
    if (t < kTile) {
      const float pivot = w[j][j];
      const float r = pivot <= 0.0F ? 0.0F : 1.0F / sqrtf(pivot);  // NaN stays NaN
      column[t] = t > j ? w[t][j] * r : 0.0F;
      row[t] = t > j ? w[t][j] * r : t == j ? r : w[j][t] * r;
    }
    __syncthreads();
    for (int i = j + t / kTile; i < size; i += kRowsATurn) {
      if (i == j) {
        if (c <= j) w[j][c] = row[c];
      } else if (c <= i) {
        w[i][c] = (c == j ? 0.0F : w[i][c]) - column[i] * row[c];
      }
    }
    __syncthreads();
  }
}

struct Arguments {
  const float* gram;
  float *factor, *inverses, *shifts;  // tiles below the diagonal of L; inverses of those on it; a shift a matrix
  float* inverse;
  std::int64_t rank, tiles;
  bool lengthen;

  __device__ const float* gram_of() const { return gram + blockIdx.y * rank * rank; }
  __device__ float* factor_of() const { return factor + blockIdx.y * rank * rank; }
  __device__ float* inverse_of() const { return inverse + blockIdx.y * rank * rank; }
  __device__ float* inverses_of(std::int64_t tile) const {
    return inverses + (blockIdx.y * tiles + tile) * kTile * kTile;
  }
};

// Column j of tiles of the factor. Blocks: (tile from the diagonal down, matrix).
__global__ void __launch_bounds__(kThreads) cholesky_column(const Arguments a, std::int64_t j) {
  Shared& shared = static_shared<Shared>();
  const std::int64_t i = j + blockIdx.x;
  const float* const gram = a.gram_of();

  double trace[1] = {0.0};
  for (std::int64_t d = threadIdx.x; d < a.rank; d += kThreads) trace[0] += static_cast<double>(gram[d * a.rank + d]);
  row_sums(trace, shared.sums);
  const auto shift = static_cast<float>(1e-6 * trace[0] + 1e-30);

  // What the columns before leave of the diagonal tile, and of the block's own.
  Part diagonal, own;
  for (std::int64_t k = 0; k < j; ++k) {
    __syncthreads();
    load_tile(a.factor_of(), a.rank, j, k, shared.right);
    if (i != j) load_tile(a.factor_of(), a.rank, i, k, shared.left);
    __syncthreads();
    add_product<true>(shared.right, shared.right, diagonal);
    if (i != j) add_product<true>(shared.left, shared.right, own);
  }
  __syncthreads();
  load_tile(gram, a.rank, j, j, shared.right);
  if (i != j) load_tile(gram, a.rank, i, j, shared.left);
  __syncthreads();
  for_part([&](int pi, int pj, int r, int c) {
    const bool inside = j * kTile + r < a.rank;  // the identity outside
    const float value = r == c && !inside ? 1.0F : shared.right[r][c] - diagonal.values[pi][pj];
    shared.right[r][c] = c > r ? 0.0F : value + (r == c && inside ? shift : 0.0F);
    if (i != j) shared.left[r][c] -= own.values[pi][pj];
  });
  __syncthreads();
  invert_factor(static_cast<int>(a.rank - j * kTile < kTile ? a.rank - j * kTile : kTile), shared.right, shared.column,
                shared.row);

  if (i == j) {
    float* const to = a.inverses_of(j);
    for_part([&](int, int, int r, int c) { to[r * kTile + c] = shared.right[r][c]; });
    if (j == 0 && threadIdx.x == 0) a.shifts[blockIdx.y] = shift;
    return;
  }
  Part result;
  add_product<true>(shared.left, shared.right, result);
  store_tile(a.factor_of(), a.rank, i, j, [&](int pi, int pj, int, int) { return result.values[pi][pj]; });
}

// Blocks: (column of tiles of the inverse, matrix).
__global__ void __launch_bounds__(kThreads) cholesky_inverse(const Arguments a) {
  Shared& shared = static_shared<Shared>();
  const std::int64_t j = blockIdx.x;
  const float length = a.lengthen ? sqrtf(1.0F + a.shifts[blockIdx.y]) : 1.0F;
  float* const inverse = a.inverse_of();
  for (std::int64_t i = 0; i < j; ++i) store_tile(inverse, a.rank, i, j, [](int, int, int, int) { return 0.0F; });
  const float* const first = a.inverses_of(j);
  store_tile(inverse, a.rank, j, j, [&](int, int, int r, int c) { return length * first[r * kTile + c]; });
  for (std::int64_t i = j + 1; i < a.tiles; ++i) {
    Part sum;
    for (std::int64_t k = j; k < i; ++k) {
      __syncthreads();  // also: what this block has written of the inverse is there
      load_tile(a.factor_of(), a.rank, i, k, shared.left);
      load_tile(inverse, a.rank, k, j, shared.right);
      __syncthreads();
      add_product<false>(shared.left, shared.right, sum);
    }
    __syncthreads();
    load_inverse(a.inverses_of(i), shared.left);
    for_part([&](int pi, int pj, int r, int c) { shared.right[r][c] = sum.values[pi][pj]; });
    __syncthreads();
    Part result;
    add_product<false>(shared.left, shared.right, result);
    store_tile(inverse, a.rank, i, j, [&](int pi, int pj, int, int) { return -result.values[pi][pj]; });
  }
}

std::int64_t tiles_of(std::int64_t rank) { return ceil_div(rank, std::int64_t{kTile}); }

}  // namespace

std::int64_t inverse_factor_floats(std::int64_t count, std::int64_t rank) {
  return count * (rank * rank + tiles_of(rank) * kTile * kTile + 1);
}

void inverse_cholesky_factor(Stream& stream, std::int64_t count, std::int64_t rank, bool lengthen, const float* gram,
                             float* inverse, float* scratch) {
  const std::int64_t tiles = tiles_of(rank);
  float* const inverses = scratch + count * rank * rank;
  const Arguments arguments{gram,    scratch, inverses, inverses + count * tiles * kTile * kTile,
                            inverse, rank,    tiles,    lengthen};
  const auto grid = [&](std::int64_t blocks) {
    return Grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)), dim3(kThreads), handle_of(stream)};
  };
  for (std::int64_t j = 0; j < tiles; ++j) launch<cholesky_column>(grid(tiles - j), arguments, j);
  launch<cholesky_inverse>(grid(tiles), arguments);
}

}  // namespace polaron::cuda

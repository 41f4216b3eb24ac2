// The first and the last op of a matrix optimizer's step. Both are bound by memory: momentum reads 8 bytes an element
// and writes 8, an update reads 8 and writes 4 or 6. A group's matrices travel in the kernel's arguments, so that
// nothing is uploaded. Tall matrices meet their transposed stack in tiles of shared memory, so that both sides are read
// and written in whole lines.
#include <algorithm>

#include "cuda/element.h"
#include "cuda/matrix.h"

namespace polaron::cuda {
namespace {

constexpr int kTile = 64;                                 // rows and columns of a parameter that a block handles
constexpr int kPackOfTile = 4;                            // neighbouring elements a thread
constexpr int kAcross = kTile / kPackOfTile, kDown = 16;  // threads
constexpr int kMatricesALaunch = 96;                      // arguments of a kernel are limited to 4 KB

struct MomentumMatrix {
  const float* gradient;
  float* momentum;  // contiguous; null: none
  std::int64_t stride;
  bool tall, aligned;
};

struct UpdateMatrix {
  float* parameter;
  bf16* working;
  std::int64_t stride;
  float step;
  bool tall, aligned;
};

template <class Matrix>
struct Group {
  Matrix matrices[kMatricesALaunch];
  std::int64_t rows, cols, tiles;  // of each matrix of the stack, rows <= cols
};

// b' = keep b + add g;  u = from_momentum b' + from_gradient g.
struct MomentumFactors {
  float keep, add, from_momentum, from_gradient;
};

// One column more, so that columns too are read from different banks.
struct Tile {
  float values[kTile][kTile + 1];
};

// Where this block's tile lies in its matrix, as the parameter is stored.
struct Place {
  std::int64_t rows, cols, first_row, first_col;
};

template <class Matrix>
__device__ __forceinline__ Place place_of_block(const Group<Matrix>& group, bool tall) {
  const std::int64_t rows = tall ? group.cols : group.rows, cols = tall ? group.rows : group.cols;
  const std::int64_t tile = blockIdx.x % group.tiles, across = ceil_div(cols, std::int64_t{kTile});
  return {rows, cols, tile / across * kTile, tile % across * kTile};
}

// Up to kPackOfTile elements; `aligned` data have whole packs only.
__device__ __forceinline__ void load_pack(bool aligned, const float* from, std::int64_t count,
                                          float (&to)[kPackOfTile]) {
  if (aligned) return load<Cache::stream>(from, to);
#pragma unroll
  for (int i = 0; i < kPackOfTile; ++i) to[i] = i < count ? from[i] : 0.0F;
}
__device__ __forceinline__ void store_pack(bool aligned, float* to, std::int64_t count,
                                           const float (&from)[kPackOfTile]) {
  if (aligned) return store<Cache::stream>(to, from);
#pragma unroll
  for (int i = 0; i < kPackOfTile; ++i) {
    if (i < count) to[i] = from[i];
  }
}

// Calls body(row, col, count) for the packs of a tile of a [rows, cols] matrix that this thread has: row and column
// within the tile, and how many of its elements are inside the matrix.
template <class Body>
__device__ __forceinline__ void for_packs(std::int64_t rows, std::int64_t cols, Body&& body) {
  const std::int64_t col = threadIdx.x * kPackOfTile;
  if (col >= cols) return;
#pragma unroll
  for (int row = static_cast<int>(threadIdx.y); row < kTile; row += kDown) {
    if (row < rows) body(row, static_cast<int>(col), cols - col);
  }
}

__global__ void __launch_bounds__(kAcross* kDown)
    momentum_into_stack(const __grid_constant__ Group<MomentumMatrix> group, const MomentumFactors f, const float* clip,
                        const std::int32_t* apply, float* stack) {
  if (apply != nullptr && *apply == 0) return;
  Tile& tile = static_shared<Tile>();
  const float factor = clip == nullptr ? 1.0F : *clip;
  const std::int64_t matrix = blockIdx.x / group.tiles;
  const MomentumMatrix& m = group.matrices[matrix];
  const Place at = place_of_block(group, m.tall);
  float* const u_of_matrix = stack + matrix * group.rows * group.cols;
  for_packs(at.rows - at.first_row, at.cols - at.first_col, [&](int row, int col, std::int64_t count) {
    const std::int64_t i = at.first_row + row, j = at.first_col + col;
    float u[kPackOfTile];
    load_pack(m.aligned, m.gradient + i * m.stride + j, count, u);
#pragma unroll
    for (float& value : u) value *= factor;
    if (m.momentum != nullptr) {
      float b[kPackOfTile];
      load_pack(m.aligned, m.momentum + i * at.cols + j, count, b);
#pragma unroll
      for (int e = 0; e < kPackOfTile; ++e) {
        b[e] = f.keep * b[e] + f.add * u[e];
        u[e] = f.from_momentum * b[e] + f.from_gradient * u[e];
      }
      store_pack(m.aligned, m.momentum + i * at.cols + j, count, b);
    }
    if (!m.tall) return store_pack(m.aligned, u_of_matrix + i * at.cols + j, count, u);
#pragma unroll
    for (int e = 0; e < kPackOfTile; ++e) tile.values[row][col + e] = u[e];
  });
  if (!m.tall) return;
  __syncthreads();
  for_packs(at.cols - at.first_col, at.rows - at.first_row, [&](int row, int col, std::int64_t count) {
    float u[kPackOfTile];
#pragma unroll
    for (int e = 0; e < kPackOfTile; ++e) u[e] = e < count ? tile.values[col + e][row] : 0.0F;
    store_pack(m.aligned, u_of_matrix + (at.first_col + row) * at.rows + at.first_row + col, count, u);
  });
}

__global__ void __launch_bounds__(kAcross* kDown)
    update_from_stack(const __grid_constant__ Group<UpdateMatrix> group, float keep, const std::int32_t* apply,
                      const float* stack) {
  if (apply != nullptr && *apply == 0) return;
  Tile& tile = static_shared<Tile>();
  const std::int64_t matrix = blockIdx.x / group.tiles;
  const UpdateMatrix& m = group.matrices[matrix];
  const Place at = place_of_block(group, m.tall);
  const float* const o_of_matrix = stack + matrix * group.rows * group.cols;
  if (m.tall) {
    for_packs(at.cols - at.first_col, at.rows - at.first_row, [&](int row, int col, std::int64_t count) {
      float o[kPackOfTile];
      load_pack(m.aligned, o_of_matrix + (at.first_col + row) * at.rows + at.first_row + col, count, o);
#pragma unroll
      for (int e = 0; e < kPackOfTile; ++e) tile.values[col + e][row] = o[e];
    });
    __syncthreads();
  }
  for_packs(at.rows - at.first_row, at.cols - at.first_col, [&](int row, int col, std::int64_t count) {
    const std::int64_t i = at.first_row + row, j = at.first_col + col;
    float w[kPackOfTile], o[kPackOfTile];
    load_pack(m.aligned, m.parameter + i * m.stride + j, count, w);
    if (m.tall) {
#pragma unroll
      for (int e = 0; e < kPackOfTile; ++e) o[e] = e < count ? tile.values[row][col + e] : 0.0F;
    } else {
      load_pack(m.aligned, o_of_matrix + i * at.cols + j, count, o);
    }
#pragma unroll
    for (int e = 0; e < kPackOfTile; ++e) w[e] = keep * w[e] - m.step * o[e];
    store_pack(m.aligned, m.parameter + i * m.stride + j, count, w);
    if (m.working == nullptr) return;
    bf16* const working = m.working + i * m.stride + j;
    if (m.aligned) {
      const uint2 words = make_uint2(to_bf16_pair(w[0], w[1]), to_bf16_pair(w[2], w[3]));
      return store_word<Cache::keep, uint2>(working, words);
    }
#pragma unroll
    for (int e = 0; e < kPackOfTile; ++e) {
      if (e < count) working[e] = to_bf16(w[e]);
    }
  });
}

bool on_multiple_of(std::size_t bytes, const void* data) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

// Whether a view and its stack are made of whole packs.
bool aligned(const MatrixView& view, const float* stack) {
  return on_multiple_of(16, view.data) && on_multiple_of(8, view.working) && on_multiple_of(16, stack) &&
         view.rows % kPackOfTile == 0 && view.cols % kPackOfTile == 0 && view.stride % kPackOfTile == 0;
}

// Calls body(group, first, grid) for the views, kMatricesALaunch at a time; describe(i) gives matrix i's arguments.
template <class Matrix, class Describe, class Body>
void in_groups(Stream& stream, std::span<const MatrixView> views, Describe&& describe, Body&& body) {
  for (std::size_t first = 0; first < views.size(); first += kMatricesALaunch) {
    const std::size_t count = std::min<std::size_t>(kMatricesALaunch, views.size() - first);
    Group<Matrix> group{};
    group.rows = std::min(views[0].rows, views[0].cols);
    group.cols = std::max(views[0].rows, views[0].cols);
    group.tiles = ceil_div(group.rows, std::int64_t{kTile}) * ceil_div(group.cols, std::int64_t{kTile});
    if (group.tiles == 0) return;
    for (std::size_t i = 0; i < count; ++i) group.matrices[i] = describe(first + i);
    const auto blocks = static_cast<unsigned>(static_cast<std::int64_t>(count) * group.tiles);
    body(group, static_cast<std::int64_t>(first) * group.rows * group.cols,
         Grid{dim3(blocks), dim3(kAcross, kDown), handle_of(stream)});
  }
}

}  // namespace

void momentum_to_stack(Stream& stream, const MomentumRule& rule, const StepGate& gate,
                       std::span<const MatrixView> gradients, std::span<float* const> momentum, float* stack) {
  const float add = rule.kind == MomentumKind::heavy ? 1.0F : 1.0F - rule.mu;
  const MomentumFactors factors{rule.mu, add, rule.nesterov ? rule.mu : 1.0F, rule.nesterov ? add : 0.0F};
  const auto describe = [&](std::size_t i) {
    const MatrixView& g = gradients[i];
    float* const b = rule.kind == MomentumKind::none ? nullptr : momentum[i];
    return MomentumMatrix{g.data, b, g.stride, g.tall(), aligned(g, stack) && on_multiple_of(16, b)};
  };
  in_groups<MomentumMatrix>(stream, gradients, describe, [&](const auto& group, std::int64_t at, const Grid& grid) {
    launch<momentum_into_stack>(grid, group, factors, gate.clip, gate.apply, stack + at);
  });
}

void update_dense(Stream& stream, const MatrixOps::UpdateRule& rule, const StepGate& gate, const float* stack,
                  std::span<const float> scales, std::span<const MatrixView> parameters) {
  const float keep = 1.0F - rule.lr * rule.weight_decay;
  const auto describe = [&](std::size_t i) {
    const MatrixView& w = parameters[i];
    return UpdateMatrix{w.data, w.working, w.stride, rule.lr * scales[i], w.tall(), aligned(w, stack)};
  };
  in_groups<UpdateMatrix>(stream, parameters, describe, [&](const auto& group, std::int64_t at, const Grid& grid) {
    launch<update_from_stack>(grid, group, keep, gate.apply, stack + at);
  });
}

}  // namespace polaron::cuda

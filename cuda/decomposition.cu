#include "cuda/decomposition.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/cusolver.h"
#include "cuda/element.h"

namespace polaron::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kElements = 8 * kThreads;  // a block of a copy

// places[matrix][j] = p: column j of the sketch, which is not zero, is column p of what the library gets; ~p for a zero
// one. Zero columns come last, where they change no other. Blocks: (matrix).
__global__ void __launch_bounds__(kThreads)
    place_columns(const float* sketches, std::int64_t rows, std::int64_t rank, std::int32_t* places) {
  const float* const y = sketches + blockIdx.x * rows * rank;
  std::int32_t* const place = places + blockIdx.x * rank;
  for (std::int64_t j = threadIdx.x; j < rank; j += kThreads) {
    bool zero = true;
    for (std::int64_t i = 0; i < rows && zero; ++i) zero = y[i * rank + j] == 0.0F;
    place[j] = zero ? 0 : 1;
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  std::int32_t next = 0, last = static_cast<std::int32_t>(rank);
  for (std::int64_t j = 0; j < rank; ++j) place[j] = place[j] != 0 ? next++ : ~--last;
}

// The columns in the order of their places, one after the other. Blocks: (kElements elements, matrix).
__global__ void __launch_bounds__(kThreads) columns_to_library(const float* sketches, const std::int32_t* places,
                                                               std::int64_t rows, std::int64_t rank, float* columns) {
  const std::int64_t elements = rows * rank, begin = blockIdx.x * kElements;
  const std::int64_t end = begin + kElements < elements ? begin + kElements : elements;
  for (std::int64_t e = begin + threadIdx.x; e < end; e += kThreads) {
    const std::int64_t i = e / rank, j = e % rank;
    const std::int32_t place = places[blockIdx.y * rank + j];
    const std::int64_t p = place < 0 ? ~place : place;
    columns[blockIdx.y * elements + p * rows + i] = sketches[blockIdx.y * elements + e];
  }
}

__global__ void __launch_bounds__(kThreads)
    columns_from_library(const float* columns, const std::int32_t* places, std::int64_t rows, std::int64_t rank,
                         float* sketches) {
  const std::int64_t elements = rows * rank, begin = blockIdx.x * kElements;
  const std::int64_t end = begin + kElements < elements ? begin + kElements : elements;
  for (std::int64_t e = begin + threadIdx.x; e < end; e += kThreads) {
    const std::int64_t i = e / rank, j = e % rank;
    const std::int32_t place = places[blockIdx.y * rank + j];
    sketches[blockIdx.y * elements + e] = place < 0 ? 0.0F : columns[blockIdx.y * elements + place * rows + i];
  }
}

// Matrices that are not finite become zero, so that the decomposition ends; bad[matrix] says so. Blocks: (matrix).
__global__ void __launch_bounds__(kThreads) screen_matrices(float* matrices, std::int64_t elements, std::int32_t* bad) {
  float* const x = matrices + blockIdx.x * elements;
  int found = 0;
  for (std::int64_t e = threadIdx.x; e < elements; e += kThreads) found |= x[e] - x[e] == 0.0F ? 0 : 1;
  struct Found {
    int warps[kThreads / 32];
  };
  Found& shared = static_shared<Found>();
  found = __any_sync(0xffffffffU, found);
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = found;
  __syncthreads();
  found = 0;
  for (const int warp : shared.warps) found |= warp;
  for (std::int64_t e = threadIdx.x; found != 0 && e < elements; e += kThreads) x[e] = 0.0F;
  if (threadIdx.x == 0) bad[blockIdx.x] = found;
}

// vectors [n, n], a singular vector a column: those of singular values that are rounding errors become zero; NaN
// throughout where there was no decomposition. Blocks: (kElements elements, matrix).
__global__ void __launch_bounds__(kThreads)
    keep_large_values(float* vectors, const float* values, const std::int32_t* bad, const std::int32_t* status,
                      std::int64_t n, float least) {
  const float* const value = values + blockIdx.y * n;
  const bool failed = bad[blockIdx.y] != 0 || status[blockIdx.y] != 0;
  const std::int64_t begin = blockIdx.x * kElements, end = begin + kElements < n * n ? begin + kElements : n * n;
  for (std::int64_t e = begin + threadIdx.x; e < end; e += kThreads) {
    float& element = vectors[blockIdx.y * n * n + e];
    if (failed) {
      element = NAN;
    } else if (!(value[e % n] > least * value[0])) {
      element = 0.0F;
    }
  }
}

Grid elements_grid(Stream& stream, std::int64_t elements, std::int64_t count) {
  return {dim3(static_cast<unsigned>(ceil_div(elements, kElements)), static_cast<unsigned>(count)), dim3(kThreads),
          handle_of(stream)};
}
Grid matrices_grid(Stream& stream, std::int64_t count) {
  return {dim3(static_cast<unsigned>(count)), dim3(kThreads), handle_of(stream)};
}

}  // namespace

class Decompositions::Solver {
 public:
  Solver() : dn_(open_cusolver()) { check(dn_.create(&handle_), "cusolverDnCreate"); }
  Solver(const Solver&) = delete;
  Solver& operator=(const Solver&) = delete;
  ~Solver() { dn_.destroy(handle_); }

  void use(Stream& stream) const { check(dn_.set_stream(handle_, handle_of(stream)), "cusolverDnSetStream"); }

  int householder_size(int rows, int rank, float* columns, const float* factors) const {
    int reflections = 0, basis = 0;
    check(dn_.geqrf_size(handle_, rows, rank, columns, rows, &reflections), "cusolverDnSgeqrf_bufferSize");
    check(dn_.orgqr_size(handle_, rows, rank, rank, columns, rows, factors, &basis), "cusolverDnSorgqr_bufferSize");
    return std::max({reflections, basis, 1});
  }
  void householder(int rows, int rank, float* columns, float* factors, float* work, int size, int* status) const {
    check(dn_.geqrf(handle_, rows, rank, columns, rows, factors, work, size, status), "cusolverDnSgeqrf");
    check(dn_.orgqr(handle_, rows, rank, rank, columns, rows, factors, work, size, status), "cusolverDnSorgqr");
  }

  // x [m, n] by columns, m >= n.
  int svd_size(int m, int n) const {
    int size = 0;
    check(dn_.gesvd_size(handle_, m, n, &size), "cusolverDnSgesvd_bufferSize");
    return std::max(size, 1);
  }
  void svd(int m, int n, float* x, float* values, float* left, float* right, float* work, int size, int* status) const {
    check(dn_.gesvd(handle_, 'S', 'S', m, n, x, m, values, left, m, right, n, work, size, nullptr, status),
          "cusolverDnSgesvd");
  }

 private:
  static void check(cusolverStatus_t status, const char* function) {
    if (status == CUSOLVER_STATUS_SUCCESS) return;
    throw Error(Exit::device, std::string("cuSOLVER: ") + function + " failed with status " +
                                  std::to_string(static_cast<int>(status)) + " (cusolver_common.h).");
  }

  CusolverDn dn_;
  cusolverDnHandle_t handle_ = nullptr;
};

Decompositions::Decompositions(Device& device, Gemm& gemm, Normalizer& normalize)
    : gemm_(gemm),
      normalize_(normalize),
      floats_(device),
      integers_(device),
      work_(device),
      solver_(std::make_unique<Solver>()) {}
Decompositions::~Decompositions() = default;

Decompositions::Room Decompositions::householder_room(std::int64_t count, std::int64_t rows, std::int64_t rank) {
  const int work = Solver().householder_size(static_cast<int>(rows), static_cast<int>(rank), nullptr, nullptr);
  return {count * rows * rank + rank, count * rank + 1, work};
}

Decompositions::Room Decompositions::exact_polar_room(const StackShape& shape) {
  const std::int64_t n = shape.rows;
  const int work = Solver().svd_size(static_cast<int>(shape.cols), static_cast<int>(n));
  return {shape.count * (2 * shape.elements() + n * n + n), 2 * shape.count, work};
}

void Decompositions::householder(Stream& stream, std::int64_t count, std::int64_t rows, std::int64_t rank,
                                 float* sketches) {
  const std::int64_t elements = rows * rank;
  float* const columns = floats_.room<float>(count * elements + rank);
  float* const factors = columns + count * elements;
  auto* const places = integers_.room<std::int32_t>(count * rank + 1);
  // The basis is the same after division by the norm, and lengths cannot overflow then.
  normalize_(stream, {}, {count, rows, rank}, sketches, stacked(sketches, rows, rank));
  launch<place_columns>(matrices_grid(stream, count), sketches, rows, rank, places);
  const Grid grid = elements_grid(stream, elements, count);
  launch<columns_to_library>(grid, sketches, places, rows, rank, columns);
  solver_->use(stream);
  const auto m = static_cast<int>(rows), k = static_cast<int>(rank);
  const int size = solver_->householder_size(m, k, columns, factors);
  float* const work = work_.room<float>(size);
  for (std::int64_t i = 0; i < count; ++i)
    solver_->householder(m, k, columns + i * elements, factors, work, size, places + count * rank);
  launch<columns_from_library>(grid, columns, places, rows, rank, sketches);
}

// By rows, X [rows, cols] is what the library takes for X^T = P S R^T: P [cols, rows] arrives as P^T by rows, and R^T
// as R [rows, rows]. The polar factor is R P^T.
void Decompositions::exact_polar(Stream& stream, const StackShape& shape, float* stack) {
  if (shape.count == 0) return;
  const std::int64_t n = shape.rows, count = shape.count;
  float* const copy = floats_.room<float>(count * (2 * shape.elements() + n * n + n));
  float* const left = copy + count * shape.elements();
  float* const right = left + count * shape.elements();
  float* const values = right + count * n * n;
  auto* const bad = integers_.room<std::int32_t>(2 * count);
  std::int32_t* const status = bad + count;
  normalize_(stream, {}, shape, stack, stacked(copy, n, shape.cols));
  launch<screen_matrices>(matrices_grid(stream, count), copy, shape.elements(), bad);
  solver_->use(stream);
  const auto rows = static_cast<int>(n), cols = static_cast<int>(shape.cols);
  const int size = solver_->svd_size(cols, rows);
  float* const work = work_.room<float>(size);
  for (std::int64_t i = 0; i < count; ++i) {
    solver_->svd(cols, rows, copy + i * shape.elements(), values + i * n, left + i * shape.elements(),
                 right + i * n * n, work, size, status + i);
  }
  const float least = static_cast<float>(n) * std::numeric_limits<float>::epsilon();
  launch<keep_large_values>(elements_grid(stream, n * n, count), right, values, bad, status, n, least);
  gemm_(stream, product_of(count, n, shape.cols, n, stacked(right, n, n), stacked(left, n, shape.cols),
                           stacked(stack, n, shape.cols)));
}

}  // namespace polaron::cuda

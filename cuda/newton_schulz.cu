// Newton-Schulz orthogonalization of a stack of matrices X [rows, cols], rows <= cols: products of whole batches.
//
// One step is X <- Z X + a X with A = X X^T, Z = b A + c A A: three products, with what is added as their addend. In
// fp32 runs of steps are done on the Gram matrix A alone (backend/newton_schulz_runs.h): with M = Z + a I, the next A
// is M A M, and the product Q of all M meets X once. bf16 takes single steps, for the chain would square its rounding
// errors.
#include <utility>

#include "backend/newton_schulz_runs.h"
#include "cuda/element.h"
#include "cuda/matrix.h"

namespace polaron::cuda {
namespace {

constexpr std::int64_t kStrideUnit = 8;  // rows of scratch begin on multiples of 16 bytes in either type
constexpr int kThreads = 256;

std::int64_t stride_of(std::int64_t cols) { return ceil_div(cols, kStrideUnit) * kStrideUnit; }

// Bytes of matrices [rows, cols] in scratch, a multiple of 256.
std::int64_t bytes_of(std::int64_t count, std::int64_t rows, std::int64_t cols, DType dtype) {
  return ceil_div(count * rows * stride_of(cols) * static_cast<std::int64_t>(size_of(dtype)), std::int64_t{256}) * 256;
}

// Hands out scratch.
class Room {
 public:
  explicit Room(float* memory) {
    const auto at = reinterpret_cast<std::uintptr_t>(memory);
    next_ = reinterpret_cast<std::byte*>(memory) + (256 - at % 256) % 256;
  }
  MatrixBatch take(std::int64_t count, std::int64_t rows, std::int64_t cols, DType dtype) {
    std::byte* const data = next_;
    next_ += bytes_of(count, rows, cols, dtype);
    return {data, dtype, stride_of(cols), rows * stride_of(cols)};
  }

 private:
  std::byte* next_;
};

// Blocks: (part of the diagonal, matrix).
__global__ void __launch_bounds__(kThreads)
    add_to_diagonal(float* matrices, std::int64_t n, std::int64_t stride, std::int64_t batch_stride, float value) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) matrices[blockIdx.y * batch_stride + i * stride + i] += value;
}

// The products of one stack.
class Products {
 public:
  Products(Stream& stream, Gemm& gemm, const StackShape& shape) : stream_(stream), gemm_(gemm), shape_(shape) {}

  // gram = x x^T.
  void gram(const MatrixBatch& x, const MatrixBatch& gram) const {
    gemm_(stream_, product_of(shape_.count, shape_.rows, shape_.rows, shape_.cols, x, x.transposed(), gram));
  }
  // to = alpha left right + beta added, left [rows, rows], right and added [rows, cols].
  void multiply(float alpha, const MatrixBatch& left, const MatrixBatch& right, std::int64_t cols, float beta,
                const MatrixBatch& added, const MatrixBatch& to) const {
    GemmCall call = product_of(shape_.count, shape_.rows, cols, shape_.rows, left, right, to);
    call.alpha = alpha;
    call.beta = beta;
    call.addend = added.data;
    gemm_(stream_, call);
  }
  void diagonal(const MatrixBatch& square, float value) const {
    launch<add_to_diagonal>({dim3(static_cast<unsigned>(ceil_div(shape_.rows, std::int64_t{kThreads})),
                                  static_cast<unsigned>(shape_.count)),
                             dim3(kThreads), handle_of(stream_)},
                            square.f32(), shape_.rows, square.stride, square.batch_stride, value);
  }

 private:
  Stream& stream_;
  Gemm& gemm_;
  const StackShape& shape_;
};

void in_fp32(Stream& stream, Gemm& gemm, Normalizer& normalize, const StackShape& shape, const NewtonSchulzSpec& spec,
             const Divisor& divisor, float* stack, float* scratch) {
  Room room(scratch);
  const auto square = [&] { return room.take(shape.count, shape.rows, shape.rows, DType::f32); };
  // Every run writes the other one of x and `to`; the last must write the stack.
  MatrixBatch x = stacked(stack, shape.rows, shape.cols), to = x;
  to.data = room.take(shape.count, shape.rows, shape.cols, DType::f32).data;  // contiguous as the stack is
  if (number_of_runs(spec, shape.rows, shape.cols) % 2 == 1) std::swap(x, to);
  const MatrixBatch a = square(), z = square();
  MatrixBatch chain = square(), other = square();
  normalize(stream, divisor, shape, stack, x);

  const Products products(stream, gemm, shape);
  const std::int64_t n = shape.rows;
  for (int step = 0; step < spec.steps;) {
    const int end = end_of_run(spec, shape.rows, shape.cols, step);
    products.gram(x, a);
    if (end == step + 1) {
      const NewtonSchulzRow& row = row_of(spec, step);
      products.multiply(row.c, a, a, n, row.b, a, z);
      products.multiply(1.0F, z, x, shape.cols, row.a, x, to);
    } else {
      for (int s = step; s < end; ++s) {
        const NewtonSchulzRow& row = row_of(spec, s);
        const MatrixBatch& polynomial = s == step ? chain : z;
        products.multiply(row.c, a, a, n, row.b, a, polynomial);
        if (s + 1 < end) {  // A <- M A M
          products.multiply(1.0F, a, polynomial, n, row.a, a, other);
          products.multiply(1.0F, polynomial, other, n, row.a, other, a);
        }
        if (s == step) {
          products.diagonal(chain, row.a);
        } else {
          products.multiply(1.0F, z, chain, n, row.a, chain, other);
          std::swap(chain, other);
        }
      }
      products.multiply(1.0F, chain, x, shape.cols, 0.0F, x, to);
    }
    std::swap(x, to);
    step = end;
  }
}

void in_bf16(Stream& stream, Gemm& gemm, Normalizer& normalize, const StackShape& shape, const NewtonSchulzSpec& spec,
             const Divisor& divisor, float* stack, float* scratch) {
  Room room(scratch);
  MatrixBatch x = room.take(shape.count, shape.rows, shape.cols, DType::bf16);
  MatrixBatch to = room.take(shape.count, shape.rows, shape.cols, DType::bf16);
  const MatrixBatch a = room.take(shape.count, shape.rows, shape.rows, DType::bf16);
  const MatrixBatch z = room.take(shape.count, shape.rows, shape.rows, DType::bf16);
  normalize(stream, divisor, shape, stack, x);
  const Products products(stream, gemm, shape);
  for (int step = 0; step < spec.steps; ++step) {
    const NewtonSchulzRow& row = row_of(spec, step);
    products.gram(x, a);
    products.multiply(row.c, a, a, shape.rows, row.b, a, z);
    products.multiply(1.0F, z, x, shape.cols, row.a, x, to);
    std::swap(x, to);
  }
  widen(stream, shape, x, stack);
}

}  // namespace

std::int64_t newton_schulz_floats(const StackShape& shape, DType dtype) {
  const std::int64_t squares = dtype == DType::f32 ? 4 : 2, copies = dtype == DType::f32 ? 1 : 2;
  const std::int64_t bytes = squares * bytes_of(shape.count, shape.rows, shape.rows, dtype) +
                             copies * bytes_of(shape.count, shape.rows, shape.cols, dtype);
  return (bytes + 256) / static_cast<std::int64_t>(sizeof(float));  // scratch may begin anywhere
}

void newton_schulz(Stream& stream, Gemm& gemm, Normalizer& normalize, const StackShape& shape,
                   const NewtonSchulzSpec& spec, float* stack, float* scratch) {
  if (shape.count == 0) return;
  const Divisor divisor{spec.norm_factor, spec.norm_eps, spec.clamp_norm};
  (spec.dtype == DType::bf16 ? in_bf16 : in_fp32)(stream, gemm, normalize, shape, spec, divisor, stack, scratch);
}

}  // namespace polaron::cuda

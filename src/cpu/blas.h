// Thin wrapper of OpenBLAS.
#pragma once

#include <cstdint>

namespace polaron::cpu {

// C = A' B' + beta C, row-major fp32, A' [m, k] and B' [k, n]; a is [k, m] when a_transposed, b is [n, k] when
// b_transposed; strides in floats. Uses all threads outside of parallel regions and one inside.
void sgemm(bool a_transposed, bool b_transposed, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
           std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);

// OpenBLAS chooses its kernels by the processor's model number and takes the oldest ones (SSE) for models newer than
// itself, at a tenth of the speed or less. This makes it choose by what the processor can do instead, unless the user
// has set OPENBLAS_CORETYPE. To be called before other threads run and before OpenBLAS is first used; calling it again
// does nothing. Covers LAPACK too.
void select_blas_kernels();

}  // namespace polaron::cpu

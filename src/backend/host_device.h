// POLARON_HD marks functions that CUDA kernels call as well as the host. Empty for host compilers.
#pragma once

#if defined(__CUDACC__)
#define POLARON_HD __host__ __device__
#else
#define POLARON_HD
#endif

// A stand-in for cuBLASLt (cublaslt.cpp): the functions that cuda/cublaslt.h names, on the host, in the order of the
// emulated streams. It reads the descriptors as the library does and refuses what the library refuses. Tests may ask of
// it what follows.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace polaron::cuda::emulation {

// The function of that name; null where there is none.
void* cublaslt_function(const char* name);

// The algorithms that it offers, in this order. They sum in different orders, so that results tell them apart.
enum FakeAlgorithm : int {
  kManyLanes,  // 16 partial sums
  kFewLanes,   // 8
  kSplit,      // two halves, added in fp32: needs workspace
  kRacing,     // parts added as they come: each run may differ. Offered, before the others, where the scheme allows it
  kFakeAlgorithms
};

struct FakeCublasLt {
  std::array<float, kFakeAlgorithms> milliseconds{2.0F, 2.0F, 2.0F, 1.0F};  // on the device's clock
  std::size_t version = 130100;
  bool epilogues = true;       // whether any epilogue is supported
  int heuristics = 0;          // calls of cublasLtMatmulAlgoGetHeuristic
  std::vector<int> ran;        // the algorithm of each product that ran
  unsigned last_epilogue = 0;  // of the product that ran last
  // The next call of this function ("cublasLtMatmul", say) does nothing but return the status.
  bool epilogues_run = true;  // false: kernels with epilogues are offered and then refuse to run
  std::string failing_function;
  cublasStatus_t failure = CUBLAS_STATUS_SUCCESS;
};
FakeCublasLt& fake_cublaslt();

}  // namespace polaron::cuda::emulation

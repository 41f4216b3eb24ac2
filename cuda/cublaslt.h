// cuBLASLt, opened at run time: the backend loads, and says what is missing, on machines without CUDA's libraries, and
// a run on the CPU does not map half a gigabyte. The tests on the host link a stand-in for the same functions.
#pragma once

#include <cublasLt.h>

namespace polaron::cuda {

// The functions of the library that are used, by the names of cublasLt.h without their prefix.
struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) get_version;
  decltype(&cublasLtGetStatusName) get_status_name;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmulAlgoCheck) check_algo;
  decltype(&cublasLtMatmulDescCreate) create_desc;
  decltype(&cublasLtMatmulDescDestroy) destroy_desc;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatrixLayoutSetAttribute) set_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
};

// Opens the library of the toolkit that this was built with (or of its later updates); it stays open. Throws
// Error(Exit::device) with the loader's reason.
CublasLt open_cublaslt();

// The same from a file, or a name that the loader knows.
CublasLt open_cublaslt(const char* file);

}  // namespace polaron::cuda

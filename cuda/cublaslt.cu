#include "cuda/cublaslt.h"

#include <string>

#include "cuda/dynamic_library.h"
#if !defined(__CUDACC__)
#include "emulation/cublaslt.h"
#endif

namespace polaron::cuda {
namespace {

constexpr LibraryName kName{
    "cuBLASLt",
    "Install cuBLAS of CUDA 13 or later (its folder must be known to the loader: ldconfig, LD_LIBRARY_PATH), or use "
    "--device cpu."};

CublasLt functions_of(const DynamicLibrary& library) {
  CublasLt lt{};
  library.find(lt.create, "cublasLtCreate");
  library.find(lt.destroy, "cublasLtDestroy");
  library.find(lt.get_version, "cublasLtGetVersion");
  library.find(lt.get_status_name, "cublasLtGetStatusName");
  library.find(lt.matmul, "cublasLtMatmul");
  library.find(lt.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  library.find(lt.check_algo, "cublasLtMatmulAlgoCheck");
  library.find(lt.create_desc, "cublasLtMatmulDescCreate");
  library.find(lt.destroy_desc, "cublasLtMatmulDescDestroy");
  library.find(lt.set_desc, "cublasLtMatmulDescSetAttribute");
  library.find(lt.create_layout, "cublasLtMatrixLayoutCreate");
  library.find(lt.destroy_layout, "cublasLtMatrixLayoutDestroy");
  library.find(lt.set_layout, "cublasLtMatrixLayoutSetAttribute");
  library.find(lt.create_preference, "cublasLtMatmulPreferenceCreate");
  library.find(lt.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  library.find(lt.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  return lt;
}

}  // namespace

CublasLt open_cublaslt(const char* file) { return functions_of({kName, {file}}); }

CublasLt open_cublaslt() {
#if defined(__CUDACC__)
  // Releases of one major version keep the interface.
  return functions_of({kName, library_files("libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR))});
#else
  return functions_of({kName, &emulation::cublaslt_function});
#endif
}

}  // namespace polaron::cuda

#include "cuda/cublaslt.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "base/error.h"
#if !defined(__CUDACC__)
#include "emulation/cublaslt.h"
#endif

namespace polaron::cuda {
namespace {

constexpr const char* kRemedy =
    " Install cuBLAS of CUDA 13 or later (its folder must be known to the loader: ldconfig, LD_LIBRARY_PATH), or use "
    "--device cpu.";

// Gives find(function, name) every function of the table.
template <class Find>
CublasLt table(Find&& find) {
  CublasLt lt{};
  find(lt.create, "cublasLtCreate");
  find(lt.destroy, "cublasLtDestroy");
  find(lt.get_version, "cublasLtGetVersion");
  find(lt.get_status_name, "cublasLtGetStatusName");
  find(lt.matmul, "cublasLtMatmul");
  find(lt.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lt.check_algo, "cublasLtMatmulAlgoCheck");
  find(lt.create_desc, "cublasLtMatmulDescCreate");
  find(lt.destroy_desc, "cublasLtMatmulDescDestroy");
  find(lt.set_desc, "cublasLtMatmulDescSetAttribute");
  find(lt.create_layout, "cublasLtMatrixLayoutCreate");
  find(lt.destroy_layout, "cublasLtMatrixLayoutDestroy");
  find(lt.set_layout, "cublasLtMatrixLayoutSetAttribute");
  find(lt.create_preference, "cublasLtMatmulPreferenceCreate");
  find(lt.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  find(lt.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  return lt;
}

void* open_library(const char* file, std::string& why_not) {
  void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) why_not += std::string(why_not.empty() ? "" : "; ") + dlerror();
  return library;
}

// find(name): the function, null where there is none.
template <class Find>
CublasLt functions(Find&& find) {
  return table([&](auto& function, const char* name) {
    void* const symbol = find(name);
    if (symbol == nullptr) {
      throw Error(Exit::device, std::string("cuBLASLt lacks the function ") + name + ": it is too old." + kRemedy);
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  });
}

CublasLt functions_of(void* library, const std::string& why_not) {
  if (library == nullptr) throw Error(Exit::device, "cuBLASLt cannot be loaded: " + why_not + "." + kRemedy);
  return functions([library](const char* name) { return dlsym(library, name); });
}

}  // namespace

CublasLt open_cublaslt(const char* file) {
  std::string why_not;
  void* const library = open_library(file, why_not);
  return functions_of(library, why_not);
}

CublasLt open_cublaslt() {
#if defined(__CUDACC__)
  // Releases of one major version keep the interface. The toolkit's own folder is for machines that build and run.
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  std::string why_not;
  void* library = open_library(name.c_str(), why_not);
#if defined(POLARON_CUDA_LIBRARY_DIR)
  if (library == nullptr) library = open_library((POLARON_CUDA_LIBRARY_DIR "/" + name).c_str(), why_not);
#endif
  return functions_of(library, why_not);
#else
  return functions(&emulation::cublaslt_function);
#endif
}

}  // namespace polaron::cuda

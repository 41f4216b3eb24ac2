#include "cuda/cusolver.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "base/error.h"
#if !defined(__CUDACC__)
#include "emulation/cusolver.h"
#endif

namespace polaron::cuda {
namespace {

constexpr const char* kRemedy =
    " Install cuSOLVER of CUDA 13 or later (its folder must be known to the loader: ldconfig, LD_LIBRARY_PATH), or use "
    "the settings that do without it: basis \"cholesky_qr\", orthogonalizer \"newton_schulz\".";

// Gives find(function, name) every function of the table.
template <class Find>
CusolverDn table(Find&& find) {
  CusolverDn dn{};
  find(dn.create, "cusolverDnCreate");
  find(dn.destroy, "cusolverDnDestroy");
  find(dn.set_stream, "cusolverDnSetStream");
  find(dn.geqrf_size, "cusolverDnSgeqrf_bufferSize");
  find(dn.geqrf, "cusolverDnSgeqrf");
  find(dn.orgqr_size, "cusolverDnSorgqr_bufferSize");
  find(dn.orgqr, "cusolverDnSorgqr");
  find(dn.gesvd_size, "cusolverDnSgesvd_bufferSize");
  find(dn.gesvd, "cusolverDnSgesvd");
  return dn;
}

// find(name): the function, null where there is none.
template <class Find>
CusolverDn functions(Find&& find) {
  return table([&](auto& function, const char* name) {
    void* const symbol = find(name);
    if (symbol == nullptr) {
      throw Error(Exit::device, std::string("cuSOLVER lacks the function ") + name + ": it is too old." + kRemedy);
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  });
}

void* open_library(const char* file, std::string& why_not) {
  void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) why_not += std::string(why_not.empty() ? "" : "; ") + dlerror();
  return library;
}

CusolverDn functions_of(void* library, const std::string& why_not) {
  if (library == nullptr) throw Error(Exit::device, "cuSOLVER cannot be loaded: " + why_not + "." + kRemedy);
  return functions([library](const char* name) { return dlsym(library, name); });
}

}  // namespace

CusolverDn open_cusolver(const char* file) {
  std::string why_not;
  void* const library = open_library(file, why_not);
  return functions_of(library, why_not);
}

CusolverDn open_cusolver() {
#if defined(__CUDACC__)
  const std::string name = "libcusolver.so." + std::to_string(CUSOLVER_VER_MAJOR);
  std::string why_not;
  void* library = open_library(name.c_str(), why_not);
#if defined(POLARON_CUDA_LIBRARY_DIR)
  if (library == nullptr) library = open_library((POLARON_CUDA_LIBRARY_DIR "/" + name).c_str(), why_not);
#endif
  return functions_of(library, why_not);
#else
  return functions(&emulation::cusolver_function);
#endif
}

}  // namespace polaron::cuda

#include "cuda/cusolver.h"

#include <string>

#include "cuda/dynamic_library.h"
#if !defined(__CUDACC__)
#include "emulation/cusolver.h"
#endif

namespace polaron::cuda {
namespace {

constexpr LibraryName kName{
    "cuSOLVER",
    "Install cuSOLVER of CUDA 13 or later (its folder must be known to the loader: ldconfig, LD_LIBRARY_PATH), or use "
    "the settings that do without it: basis \"cholesky_qr\", orthogonalizer \"newton_schulz\"."};

CusolverDn functions_of(const DynamicLibrary& library) {
  CusolverDn dn{};
  library.find(dn.create, "cusolverDnCreate");
  library.find(dn.destroy, "cusolverDnDestroy");
  library.find(dn.set_stream, "cusolverDnSetStream");
  library.find(dn.geqrf_size, "cusolverDnSgeqrf_bufferSize");
  library.find(dn.geqrf, "cusolverDnSgeqrf");
  library.find(dn.orgqr_size, "cusolverDnSorgqr_bufferSize");
  library.find(dn.orgqr, "cusolverDnSorgqr");
  library.find(dn.gesvd_size, "cusolverDnSgesvd_bufferSize");
  library.find(dn.gesvd, "cusolverDnSgesvd");
  return dn;
}

}  // namespace

CusolverDn open_cusolver(const char* file) { return functions_of({kName, {file}}); }

CusolverDn open_cusolver() {
#if defined(__CUDACC__)
  return functions_of({kName, library_files("libcusolver.so." + std::to_string(CUSOLVER_VER_MAJOR))});
#else
  return functions_of({kName, &emulation::cusolver_function});
#endif
}

}  // namespace polaron::cuda

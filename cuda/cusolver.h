// cuSOLVER, opened at run time by the first op that needs it: it is the reference path only, and a large library. The
// tests on the host link a stand-in for the same functions.
#pragma once

#include <cusolverDn.h>

namespace polaron::cuda {

// The functions of the library that are used, by the names of cusolverDn.h without their prefix.
struct CusolverDn {
  decltype(&cusolverDnCreate) create;
  decltype(&cusolverDnDestroy) destroy;
  decltype(&cusolverDnSetStream) set_stream;
  decltype(&cusolverDnSgeqrf_bufferSize) geqrf_size;
  decltype(&cusolverDnSgeqrf) geqrf;
  decltype(&cusolverDnSorgqr_bufferSize) orgqr_size;
  decltype(&cusolverDnSorgqr) orgqr;
  decltype(&cusolverDnSgesvd_bufferSize) gesvd_size;
  decltype(&cusolverDnSgesvd) gesvd;
};

// Opens the library of the toolkit that this was built with (or of its later updates); it stays open. Throws
// Error(Exit::device) with the loader's reason.
CusolverDn open_cusolver();

// The same from a file, or a name that the loader knows.
CusolverDn open_cusolver(const char* file);

}  // namespace polaron::cuda

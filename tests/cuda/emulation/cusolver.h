// A stand-in for the functions of cuSOLVER that cuda/cusolver.h lists: LAPACK, when the call's turn on the stream
// comes.
#pragma once

#include <cusolverDn.h>

namespace polaron::cuda::emulation {

// The stand-in's function of that name; null where it has none.
void* cusolver_function(const char* name);

}  // namespace polaron::cuda::emulation

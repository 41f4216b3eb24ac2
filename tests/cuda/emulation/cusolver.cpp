#include "emulation/cusolver.h"

#include <lapacke.h>

#include <algorithm>
#include <map>
#include <string>

#include "emulation/emulation.h"

using polaron::cuda::emulation::enqueue;

struct cusolverDnContext {  // the library's own type is opaque; this one is ours
  cudaStream_t stream = nullptr;
};

namespace {

// As much as LAPACK needs at least. What the real functions ask for is their own affair; calls that bring less are
// refused.
int work_of(int rows, int cols) { return 7 * std::max(rows, cols) + 3; }

bool sound(int m, int n, int ld, int size, const void* work, const void* status) {
  return m >= 1 && n >= 1 && n <= m && ld >= m && size >= work_of(m, n) && work != nullptr && status != nullptr;
}

}  // namespace

extern "C" {

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  *handle = new cusolverDnContext;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete handle;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSgeqrf_bufferSize(cusolverDnHandle_t, int m, int n, float*, int, int* size) {
  *size = work_of(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSgeqrf(cusolverDnHandle_t handle, int m, int n, float* a, int ld, float* tau, float* work,
                                  int size, int* status) {
  if (!sound(m, n, ld, size, work, status)) return CUSOLVER_STATUS_INVALID_VALUE;
  enqueue(handle->stream, [=] { *status = LAPACKE_sgeqrf_work(LAPACK_COL_MAJOR, m, n, a, ld, tau, work, size); });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSorgqr_bufferSize(cusolverDnHandle_t, int m, int n, int, const float*, int, const float*,
                                             int* size) {
  *size = work_of(m, n) + 1;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSorgqr(cusolverDnHandle_t handle, int m, int n, int k, float* a, int ld, const float* tau,
                                  float* work, int size, int* status) {
  if (!sound(m, n, ld, size - 1, work, status) || k > n) return CUSOLVER_STATUS_INVALID_VALUE;
  enqueue(handle->stream, [=] { *status = LAPACKE_sorgqr_work(LAPACK_COL_MAJOR, m, n, k, a, ld, tau, work, size); });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSgesvd_bufferSize(cusolverDnHandle_t, int m, int n, int* size) {
  if (m < n) return CUSOLVER_STATUS_INVALID_VALUE;  // as the real one
  *size = work_of(m, n);
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSgesvd(cusolverDnHandle_t handle, signed char left, signed char right, int m, int n,
                                  float* a, int ld, float* values, float* u, int u_ld, float* v, int v_ld, float* work,
                                  int size, float*, int* status) {
  if (!sound(m, n, ld, size, work, status) || u_ld < m || v_ld < n) return CUSOLVER_STATUS_INVALID_VALUE;
  enqueue(handle->stream, [=] {
    *status = LAPACKE_sgesvd_work(LAPACK_COL_MAJOR, static_cast<char>(left), static_cast<char>(right), m, n, a, ld,
                                  values, u, u_ld, v, v_ld, work, size);
  });
  return CUSOLVER_STATUS_SUCCESS;
}

}  // extern "C"

namespace polaron::cuda::emulation {

void* cusolver_function(const char* name) {
  static const std::map<std::string, void*> functions = {
      {"cusolverDnCreate", reinterpret_cast<void*>(&cusolverDnCreate)},
      {"cusolverDnDestroy", reinterpret_cast<void*>(&cusolverDnDestroy)},
      {"cusolverDnSetStream", reinterpret_cast<void*>(&cusolverDnSetStream)},
      {"cusolverDnSgeqrf_bufferSize", reinterpret_cast<void*>(&cusolverDnSgeqrf_bufferSize)},
      {"cusolverDnSgeqrf", reinterpret_cast<void*>(&cusolverDnSgeqrf)},
      {"cusolverDnSorgqr_bufferSize", reinterpret_cast<void*>(&cusolverDnSorgqr_bufferSize)},
      {"cusolverDnSorgqr", reinterpret_cast<void*>(&cusolverDnSorgqr)},
      {"cusolverDnSgesvd_bufferSize", reinterpret_cast<void*>(&cusolverDnSgesvd_bufferSize)},
      {"cusolverDnSgesvd", reinterpret_cast<void*>(&cusolverDnSgesvd)}};
  const auto found = functions.find(name);
  return found == functions.end() ? nullptr : found->second;
}

}  // namespace polaron::cuda::emulation

// ThreadSanitizer sees no access that MPI makes, for MPI is not instrumented: a thread that writes what travels would
// go unnoticed. So under it the calls that the communicator makes are wrapped here (MPI's profiling interface) and tell
// which memory they read and write, on the thread that makes them. A transfer that has been started counts as an access
// at its start; what another thread does to that memory before finish() is not ordered after it, and so is reported.
#if defined(__SANITIZE_THREAD__)  // g++
#define POLARON_TELL_ACCESSES
#elif defined(__has_feature)  // clang++
#if __has_feature(thread_sanitizer)
#define POLARON_TELL_ACCESSES
#endif
#endif

#ifdef POLARON_TELL_ACCESSES

#include <mpi.h>

#include <cstddef>

extern "C" {
// Of the sanitizer's runtime.
void __tsan_read_range(const void* data, unsigned long bytes);  // NOLINT(bugprone-reserved-identifier)
void __tsan_write_range(void* data, unsigned long bytes);       // NOLINT(bugprone-reserved-identifier)
}

namespace {

unsigned long bytes_of(int count, MPI_Datatype type) {
  int size = 0;
  PMPI_Type_size(type, &size);
  return static_cast<unsigned long>(count) * static_cast<unsigned long>(size);
}
void reads(const void* data, int count, MPI_Datatype type) {
  if (data != nullptr && data != MPI_IN_PLACE) __tsan_read_range(data, bytes_of(count, type));
}
void writes(void* data, int count, MPI_Datatype type) {
  if (data != nullptr) __tsan_write_range(data, bytes_of(count, type));
}
int rank_in(MPI_Comm processes) {
  int rank = 0;
  PMPI_Comm_rank(processes, &rank);
  return rank;
}
// A broadcast reads at its root and writes elsewhere.
void broadcasts(void* data, int count, MPI_Datatype type, int root, MPI_Comm processes) {
  if (rank_in(processes) == root) {
    reads(data, count, type);
  } else {
    writes(data, count, type);
  }
}

}  // namespace

extern "C" {

int MPI_Ireduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op, int root, MPI_Comm processes,
                MPI_Request* request) {
  reads(from, count, type);
  if (rank_in(processes) == root) writes(to, count, type);
  return PMPI_Ireduce(from, to, count, type, op, root, processes, request);
}

int MPI_Ibcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm processes, MPI_Request* request) {
  broadcasts(data, count, type, root, processes);
  return PMPI_Ibcast(data, count, type, root, processes, request);
}

int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm processes) {
  broadcasts(data, count, type, root, processes);
  return PMPI_Bcast(data, count, type, root, processes);
}

int MPI_Allgather(const void* from, int count, MPI_Datatype type, void* to, int to_count, MPI_Datatype to_type,
                  MPI_Comm processes) {
  int size = 0;
  PMPI_Comm_size(processes, &size);
  reads(from, count, type);
  writes(to, to_count * size, to_type);
  return PMPI_Allgather(from, count, type, to, to_count, to_type, processes);
}

int MPI_Send(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm processes) {
  reads(data, count, type);
  return PMPI_Send(data, count, type, to, tag, processes);
}

int MPI_Recv(void* data, int count, MPI_Datatype type, int from, int tag, MPI_Comm processes, MPI_Status* status) {
  writes(data, count, type);
  return PMPI_Recv(data, count, type, from, tag, processes, status);
}

}  // extern "C"

#endif

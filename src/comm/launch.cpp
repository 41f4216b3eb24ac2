#include "comm/launch.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"

namespace polaron {
namespace {

// What the common launchers (Open MPI, MPICH and Intel MPI, Slurm with PMIx) set in every process they start.
bool launched_in_parallel() {
  constexpr const char* kMarks[] = {"OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK"};
  return std::any_of(std::begin(kMarks), std::end(kMarks),
                     [](const char* name) { return std::getenv(name) != nullptr; });
}

}  // namespace

std::unique_ptr<Communicator> make_communicator() {
  if (!launched_in_parallel()) return make_single_process_communicator();
#ifdef POLARON_HAVE_MPI
  return make_mpi_communicator();
#else
  throw Error(
      Exit::device,
      "started by an MPI launcher, but this build of polaron has no MPI: install it (Debian: libopenmpi-dev) and "
      "build again, or start one process without mpirun.");
#endif
}

}  // namespace polaron

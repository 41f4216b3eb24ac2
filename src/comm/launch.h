// Internal to comm/: how processes are started together.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace polaron {

// Throws Error(Exit::device) where MPI cannot be initialised.
std::unique_ptr<Communicator> make_mpi_communicator();

}  // namespace polaron

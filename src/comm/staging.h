// Internal to comm/: transfers between devices through host memory and MPI, where nothing better is to be had.
#pragma once

#include <memory>

#include "backend/collectives.h"
#include "comm/communicator.h"

namespace polaron {

// `processes` must be MPI's; it and the device must outlive what is returned. Collective.
std::unique_ptr<Collectives> make_staging(Communicator& processes, Device& device);

}  // namespace polaron

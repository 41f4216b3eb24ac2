// Transfers between GPUs by NCCL, one process a GPU.
#pragma once

#include "backend/collectives.h"

namespace polaron::cuda {

// open() says why NCCL cannot be used; make() also where it refuses, as it does when two processes have the same GPU.
CollectivesLibrary nccl_collectives();

}  // namespace polaron::cuda

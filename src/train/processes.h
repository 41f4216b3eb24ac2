// What several processes must agree on before they train together, and how they share a machine.
#pragma once

#include "comm/communicator.h"
#include "config/config.h"
#include "optim/assignment.h"
#include "train/checkpoint.h"

namespace polaron {

// Threads of this process: config.threads, or with 0 its share of the cores that it may use, which other processes on
// the machine may use as well. Collective. Warns where there are more threads than cores.
int threads_for(const Config& config, Communicator& communicator);

// Error(Exit::usage) on all processes where one has another config (the first line that differs is named) or another
// executable. Collective.
void check_same_start(const Config& config, Communicator& communicator);

// Error(Exit::usage) on all processes where they do not start from the same checkpoint (null: from none), say because a
// network file system still shows one of them an older `latest`. `option` leads the message. Collective.
void check_same_checkpoint(const CheckpointReader* checkpoint, const std::string& option, Communicator& communicator);

// Error(Exit::usage) where so many processes cannot share the batch or the matrices, or where the config asks for
// something that the exchange of sketches cannot give.
void check_processes(const Config& config, const Assignment& assignment, int processes);

// Error(Exit::device) on all processes where they hold different weights. Collective; the weights are in host memory.
void check_same_weights(std::span<const std::byte> weights, std::int64_t step, Communicator& communicator);

}  // namespace polaron

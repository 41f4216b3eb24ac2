// What several processes must agree on before they train together, and how they share a machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "backend/device.h"
#include "comm/communicator.h"
#include "config/config.h"
#include "data/validation.h"
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

// Error(Exit::data) on all processes where one reads other data than process 0: another fingerprint of the training
// shards (Loader::fingerprint), or other validation shards (null: none). Collective.
void check_same_data(std::uint64_t fingerprint, const ValidationReader* validation, Communicator& communicator);

// Error(Exit::usage) where so many processes cannot share the batch or the matrices, or where the config asks for
// something that the exchange of sketches cannot give.
void check_processes(const Config& config, const Assignment& assignment, int processes);

// Checksum (XXH3) of memory on the device, read through host memory of at most `piece` bytes. Waits for the stream.
std::uint64_t checksum_on_device(Device& device, Stream& stream, const void* data, std::size_t bytes,
                                 std::size_t piece = std::size_t{64} << 20U);

// Error(Exit::device) on all processes where they hold weights of different checksums. Collective.
void check_same_weights(std::uint64_t checksum, std::int64_t step, Communicator& communicator);

}  // namespace polaron

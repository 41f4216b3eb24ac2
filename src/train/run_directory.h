// What a start may do with a run directory: begin a run in it, or go on with the one that it holds.
#pragma once

#include <filesystem>
#include <optional>

#include "train/checkpoint.h"

namespace polaron {

// The checkpoint that a run with output directory `run` goes on from; nothing for a new run. `resume` as in
// TrainOptions. Refuses what would overwrite another run: Error(Exit::usage) where `run` holds one and `resume` is
// nothing or a checkpoint of a third; Error(Exit::data) where there is no checkpoint, or none in order.
std::optional<CheckpointReader> checkpoint_to_resume(const std::filesystem::path& run,
                                                     const std::optional<std::filesystem::path>& resume);

}  // namespace polaron

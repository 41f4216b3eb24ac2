// What a start may do with a run directory: begin a run in it, or go on with the one that it holds, alone.
#pragma once

#include <filesystem>
#include <optional>

#include "io/file.h"
#include "train/checkpoint.h"

namespace polaron {

// Holds the directory for this process until the File is closed, at the latest until its death: Error(Exit::usage)
// where another process holds it. A closed File where there is no such directory yet, or where its file system has no
// locks.
File lock_run_directory(const std::filesystem::path& run);

// The checkpoint that a run with output directory `run` goes on from; nothing for a new run. `resume` and `automatic`
// as in TrainOptions. Refuses what would overwrite another run: Error(Exit::usage) where `run` holds one and `resume`
// is nothing or a checkpoint of a third; Error(Exit::data) where there is no checkpoint, or none in order.
std::optional<CheckpointReader> checkpoint_to_resume(const std::filesystem::path& run,
                                                     const std::optional<std::filesystem::path>& resume,
                                                     bool automatic = false);

// Sets the logs aside (NAME.stopped, or NAME.stopped-2 and so on where there is one) of a run that begins anew.
void set_logs_aside(const std::filesystem::path& run);

// To call before anything else of the run is written when it goes on from `checkpoint`: <run>/checkpoints/latest is
// made to point at it where it lies in the run, so that what is killed before the next checkpoint goes on from there
// too.
void point_latest_at(const std::filesystem::path& run, const std::filesystem::path& checkpoint);

}  // namespace polaron

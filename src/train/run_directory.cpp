#include "train/run_directory.h"

#include <fmt/format.h>

#include "base/error.h"

namespace polaron {
namespace {

namespace fs = std::filesystem;

bool holds_run(const fs::path& run) { return fs::exists(run / "metrics.jsonl") || has_checkpoint(run); }

bool is_inside(const fs::path& path, const fs::path& folder) {
  const fs::path relative = fs::weakly_canonical(path).lexically_relative(fs::weakly_canonical(folder));
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

std::optional<CheckpointReader> checkpoint_to_resume(const fs::path& run, const std::optional<fs::path>& resume) {
  const bool resumable = has_checkpoint(run);
  const bool taken = holds_run(run);
  if (!resume) {
    if (taken) {
      throw Error(
          Exit::usage,
          fmt::format(
              "{} already holds a run. {}, or choose another directory by --set output=DIR.", run.string(),
              resumable ? "Go on with it by --resume" : "It has no checkpoint to go on from: remove it to start anew"));
    }
    return std::nullopt;
  }
  if (resume->empty()) {
    if (!resumable) {
      throw Error(Exit::data, fmt::format("{} has no checkpoint to resume from; {}leave out --resume to start the run.",
                                          run.string(), taken ? "remove the directory and " : ""));
    }
    return CheckpointReader(run);
  }
  CheckpointReader reader(*resume);
  if (taken && !is_inside(reader.folder(), run)) {
    throw Error(Exit::usage, fmt::format("{} already holds another run than {}. Choose another directory by --set "
                                         "output=DIR.",
                                         run.string(), reader.folder().string()));
  }
  return reader;
}

}  // namespace polaron

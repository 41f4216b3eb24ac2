#include "train/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"
#include "io/atomic.h"

namespace polaron {
namespace {

namespace fs = std::filesystem;

bool is_inside(const fs::path& path, const fs::path& folder) {
  const fs::path relative = fs::weakly_canonical(path).lexically_relative(fs::weakly_canonical(folder));
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

File lock_run_directory(const fs::path& run) {
  File folder(::open(run.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), run);
  if (folder.descriptor() >= 0 && ::flock(folder.descriptor(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error(Exit::usage,
                fmt::format("another process trains in {}. Stop it first (SIGTERM makes it checkpoint), or "
                            "choose another directory by --set output=DIR.",
                            run.string()));
  }
  return folder;
}

std::optional<CheckpointReader> checkpoint_to_resume(const fs::path& run, const std::optional<fs::path>& resume,
                                                     bool automatic) {
  const bool resumable = has_checkpoint(run);
  if (automatic && resumable) return CheckpointReader(run);
  if (automatic && (!resume || resume->empty())) return std::nullopt;
  const bool taken = !automatic && (resumable || fs::exists(run / "metrics.jsonl"));
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

void set_logs_aside(const fs::path& run) {
  for (const char* name : {"metrics.jsonl", "spectra.jsonl"}) {
    fs::path aside = run / (std::string(name) + ".stopped");
    for (int i = 2; fs::exists(aside); ++i) aside = run / fmt::format("{}.stopped-{}", name, i);
    std::error_code missing;
    fs::rename(run / name, aside, missing);
  }
}

void point_latest_at(const fs::path& run, const fs::path& checkpoint) {
  if (!is_inside(checkpoint, run)) return;
  const fs::path folder = run / "checkpoints";
  std::error_code missing;  // then it is not the same, either
  if (fs::equivalent(folder / "latest", checkpoint, missing)) return;
  point_symlink_atomically(folder / "latest",
                           fs::weakly_canonical(checkpoint).lexically_relative(fs::weakly_canonical(folder)));
}

}  // namespace polaron

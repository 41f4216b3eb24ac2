#include "train/processes.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "cpu/host.h"
#include "io/checksum.h"
#include "train/plan.h"

namespace polaron {
namespace {

// Whether `flag` holds on any process.
bool anywhere(bool flag, Communicator& communicator) {
  double count = flag ? 1 : 0;
  communicator.sum_host(std::span(&count, 1));
  return count > 0;
}

// Process 0's text, on every process.
std::string from_root(std::string text, Communicator& communicator) {
  auto size = static_cast<std::int64_t>(text.size());
  communicator.broadcast_host(&size, sizeof size, 0);
  text.resize(static_cast<std::size_t>(size));
  communicator.broadcast_host(text.data(), size, 0);
  return text;
}

// The first line of `theirs` that `ours` has not.
std::string first_difference(const std::string& ours, const std::string& theirs) {
  std::istringstream a(ours), b(theirs);
  std::string x, y;
  while (std::getline(b, y)) {
    if (!std::getline(a, x) || x != y) break;
  }
  const auto trimmed = [](const std::string& line) {
    const std::size_t first = line.find_first_not_of(' ');
    return first == std::string::npos ? line : line.substr(first);
  };
  return fmt::format("{} here, {} on process 0", trimmed(x), trimmed(y));
}

// The part of the processors in this process's affinity mask that falls to it when all processes of the machine that
// may use one share it, in cores.
double share_of_cores(Communicator& communicator) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  const double cores = cpu::usable_cores();
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return cores / communicator.local_size();
  std::vector<double> users(CPU_SETSIZE, 0.0);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) users[static_cast<std::size_t>(cpu)] = CPU_ISSET(cpu, &mask) ? 1 : 0;
  communicator.sum_local(users);
  double share = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) share += 1 / users[static_cast<std::size_t>(cpu)];
  }
  return cores * share / CPU_COUNT(&mask);
}

}  // namespace

int threads_for(const Config& config, Communicator& communicator) {
  if (communicator.size() == 1) return static_cast<int>(config.threads);
  const double share = share_of_cores(communicator);
  const int threads =
      config.threads > 0 ? static_cast<int>(config.threads) : std::max(1, static_cast<int>(share + 1e-6));
  // Process 0 speaks, also of another's machine.
  struct Crowd {
    double processes = 0, threads = 0, cores = 0;
  };
  static_assert(sizeof(Crowd) == 3 * sizeof(double));
  std::vector<Crowd> crowds(static_cast<std::size_t>(communicator.size()));
  if (threads > share + 1e-6) {
    crowds[static_cast<std::size_t>(communicator.rank())] = {static_cast<double>(communicator.local_size()),
                                                             static_cast<double>(threads), share};
  }
  communicator.sum_host(std::span(reinterpret_cast<double*>(crowds.data()), 3 * crowds.size()));
  const auto crowd = std::find_if(crowds.begin(), crowds.end(), [](const Crowd& each) { return each.processes > 0; });
  if (crowd != crowds.end()) {
    log::warn(fmt::format(
        "the {} processes of {} thread{} on the machine of process {} have {:.4g} cores each: they take "
        "turns. Start fewer processes, or set --threads.",
        crowd->processes, crowd->threads, crowd->threads == 1 ? "" : "s", crowd - crowds.begin(), crowd->cores));
  }
  return threads;
}

void check_same_start(const Config& config, Communicator& communicator) {
  const std::string ours = to_json(config);
  const std::string theirs = from_root(ours, communicator);
  const bool differs = ours != theirs;
  if (anywhere(differs, communicator)) {
    throw Error(Exit::usage, differs ? fmt::format("this process was given another config than process 0: {}.",
                                                   first_difference(ours, theirs))
                                     : "the processes were given different configs: start all with the same file and "
                                       "arguments.");
  }
  const std::string program = checksum_to_hex(digest_file("/proc/self/exe").xxh3);
  if (anywhere(from_root(program, communicator) != program, communicator)) {
    throw Error(Exit::usage, "the processes run different builds of polaron: install the same one on every machine.");
  }
}

void check_same_checkpoint(const CheckpointReader* checkpoint, const std::string& option, Communicator& communicator) {
  if (communicator.size() == 1) return;
  struct Start {
    double step, upper, lower;  // the halves of the checksum: a double holds 32 bits exactly
    bool operator==(const Start&) const = default;
  };
  constexpr double kNone = -2, kWeightsOnly = -1;
  std::vector<Start> starts(static_cast<std::size_t>(communicator.size()));
  const std::uint64_t checksum = checkpoint != nullptr ? checkpoint->checksum() : 0;
  starts[static_cast<std::size_t>(communicator.rank())] = {
      checkpoint == nullptr     ? kNone
      : checkpoint->resumable() ? static_cast<double>(checkpoint->state().step)
                                : kWeightsOnly,
      static_cast<double>(checksum >> 32U), static_cast<double>(checksum & 0xFFFFFFFFU)};
  static_assert(sizeof(Start) == 3 * sizeof(double));
  communicator.sum_host(std::span(reinterpret_cast<double*>(starts.data()), 3 * starts.size()));
  const auto described = [&](std::size_t process) {
    const Start& start = starts[process];
    const std::string from = start.step == kNone          ? "from no checkpoint"
                             : start.step == kWeightsOnly ? "from a folder of weights"
                                                          : fmt::format("from step {}", start.step);
    return fmt::format("process {} starts {} (checksum {:08x}{:08x})", process, from,
                       static_cast<std::uint32_t>(start.upper), static_cast<std::uint32_t>(start.lower));
  };
  const auto other = std::find_if(starts.begin(), starts.end(), [&](const Start& s) { return s != starts.front(); });
  if (other == starts.end()) return;
  throw Error(
      Exit::usage,
      fmt::format("{}: {}, but {}: all need the same one. Name the step's folder, and where the machines do not "
                  "share it, copy it to each.",
                  option, described(0), described(static_cast<std::size_t>(other - starts.begin()))));
}

void check_same_data(std::uint64_t fingerprint, const ValidationReader* validation, Communicator& communicator) {
  if (communicator.size() == 1) return;
  const std::string held_out = validation == nullptr
                                   ? "none"
                                   : fmt::format("{} of {} tokens in {} micro-batches", validation->tokens(),
                                                 validation->available(), validation->micro_batches());
  const auto compare = [&](const std::string& ours, const std::string& what) {
    const std::string theirs = from_root(ours, communicator);
    if (!anywhere(ours != theirs, communicator)) return;
    throw Error(Exit::data,
                fmt::format("the processes read different {} shards{}: give every machine the same files.", what,
                            ours != theirs ? fmt::format(" ({} here, {} on process 0)", ours, theirs) : ""));
  };
  compare(fmt::format("{:016x}", fingerprint), "training");
  compare(held_out, "validation");
}

void check_processes(const Config& config, const Assignment& assignment, int processes) {
  const TrainingConfig& t = config.training;
  if (processes > t.batch) {
    throw Error(Exit::usage,
                fmt::format("{} processes, but training.batch is {} sequences: start at most {} processes, "
                            "or raise training.batch.",
                            processes, t.batch, t.batch));
  }
  if (t.batch % processes != 0) {
    throw Error(Exit::usage, fmt::format("{} processes do not divide training.batch {}: each takes an equal part.",
                                         processes, t.batch));
  }
  const std::int64_t share = t.batch / processes;
  if (share % micro_batch_of(t, processes) != 0) {
    throw Error(Exit::usage, fmt::format("training.micro_batch {} does not divide the {} sequences of each of {} "
                                         "processes (training.batch {}).",
                                         t.micro_batch, share, processes, t.batch));
  }
  std::size_t matrices = 0;
  for (const MatrixClass& c : assignment.classes) matrices += c.items.size();
  if (matrices > 0 && matrices < static_cast<std::size_t>(processes)) {
    throw Error(Exit::usage, fmt::format("{} processes, but the model has only {} matrices under a matrix optimizer, "
                                         "and one process owns each: start at most {} processes.",
                                         processes, matrices, matrices));
  }
  if (config.parallel.exchange != Exchange::sketch) return;
  if (t.gradient_clip > 0) {
    throw Error(Exit::usage,
                "parallel.exchange \"sketch\" never sums the gradients of matrices, so their global norm is not known: "
                "set training.gradient_clip to 0, or choose another exchange.");
  }
  for (const MatrixClass& c : assignment.classes) {
    if (c.rank > 0 && c.settings.sketch == SketchKind::power) {
      throw Error(Exit::usage,
                  "parallel.exchange \"sketch\" needs a sketch that is linear in the momentum: set the optimizer's "
                  "sketch to \"columns\" or \"gaussian\", or choose another exchange.");
    }
  }
}

std::uint64_t checksum_on_device(Device& device, Stream& stream, const void* data, std::size_t bytes,
                                 std::size_t piece) {
  Checksum checksum;
  std::vector<std::byte> host(std::min(bytes, piece));
  for (std::size_t first = 0; first < bytes; first += piece) {
    const std::size_t count = std::min(piece, bytes - first);
    device.download(stream, host.data(), static_cast<const std::byte*>(data) + first, count);
    stream.synchronize();
    checksum.update(std::span(host).first(count));
  }
  return checksum.value();
}

void check_same_weights(std::uint64_t checksum, std::int64_t step, Communicator& communicator) {
  const std::string ours = checksum_to_hex(checksum);
  const std::string theirs = from_root(ours, communicator);
  if (anywhere(ours != theirs, communicator)) {
    throw Error(
        Exit::device,
        fmt::format("after step {} the processes hold different weights{}: a machine computes or communicates "
                    "wrongly, or they differ in processor or libraries. Go on from the last checkpoint with "
                    "parallel.exchange \"parameters\", which sends the weights themselves.",
                    step, ours != theirs ? fmt::format(" (checksum {} here, {} on process 0)", ours, theirs) : ""));
  }
}

}  // namespace polaron

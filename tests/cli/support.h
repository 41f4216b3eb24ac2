// Running the polaron program as a person would: as a process of its own, in a folder of its own, with a time limit.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace polaron::test {

// How a process ended and what it said.
struct Outcome {
  int code = -1;      // exit status; -1: it was killed
  int signal = 0;     // that killed it; 0: none
  bool hung = false;  // it was killed here, because it had not ended within the limit
  std::string out, err;
};

using Arguments = std::vector<std::string>;

struct ProcessOptions {
  bool paced = false;    // the process waits where its output is more than a few lines ahead of read_until()
  bool nobody = false;   // gives up root's rights first
  double seconds = 100;  // limit for the whole life
  Arguments launcher;    // program and arguments that start polaron, say mpirun -n 2; empty: it is started itself
};

// A running polaron. Its standard output and error are read by this class only; its standard input is empty.
class Process {
 public:
  Process(const std::filesystem::path& folder, const Arguments& arguments, const ProcessOptions& options = {});
  ~Process();  // kills it where it still runs
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t id() const { return id_; }
  // Reads standard output up to and including `text`. False where it ends before.
  bool read_until(const std::string& text);
  void send(int signal) const;
  // Reads the rest and waits for the end.
  Outcome finish();

 private:
  // Waits for output and takes up to `most` bytes; false where both streams are at their end or time is over.
  bool read_some(std::size_t most);

  pid_t id_ = -1;
  int out_ = -1, err_ = -1;  // -1: at its end
  std::int64_t deadline_ns_ = 0;
  Outcome outcome_;
};

// A folder that holds what a test needs and is removed with it. Names are relative to it, and programs run in it.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  void write(const std::string& name, const std::string& bytes) const;
  std::string read(const std::string& name) const;

  // data/train_0.bin, train_1.bin, validation_0.bin of a made-up language of bytes, and vocabulary.json beside them.
  void write_data() const;
  // A config over that data, for a model that takes a millisecond a step, with `patch` (RFC 7396) put over it.
  static nlohmann::json tiny_config(const nlohmann::json& patch = nlohmann::json::object());
  // Writes it as NAME.json, with output runs/NAME; returns "NAME.json".
  std::string write_config(const std::string& name, const nlohmann::json& patch = nlohmann::json::object()) const;

  Outcome run(const Arguments& arguments, const ProcessOptions& options = {}) const {
    return Process(path_, arguments, options).finish();
  }
  // write_config, then `train NAME.json` and `more`; fails the test where that does not end with `code`.
  Outcome train(const std::string& name, const nlohmann::json& patch = nlohmann::json::object(),
                const Arguments& more = {}, int code = 0) const;
  // What `eval RUN --data data/validation_*.bin --json` and `more` prints.
  nlohmann::json eval(const std::string& run, const Arguments& more = {}) const;

  // The lines of runs/NAME/metrics.jsonl of one kind; of any where it is empty.
  std::vector<nlohmann::json> metrics(const std::string& name, const std::string& kind = "step") const;
  std::vector<double> losses(const std::string& name) const;
  // The lines of runs/NAME/spectra.jsonl by step, matrix, and gradient before momentum.
  std::vector<nlohmann::json> spectra(const std::string& name) const;
  // The names in runs/NAME/checkpoints, sorted.
  std::vector<std::string> checkpoints(const std::string& name) const;

 private:
  std::filesystem::path path_;
};

// Token ids as a shard file's bytes, in the 16-bit form. The three numbers of the header may be wrong on purpose.
std::string shard(const std::vector<int>& tokens, std::int32_t magic = 20240520, std::int32_t version = 1,
                  std::int32_t count = -1);
// Some of the made-up language: words of eight kinds, documents opened by token 256.
std::vector<int> tiny_language(std::int64_t tokens, unsigned seed);

// With `paced` set.
ProcessOptions paced();

// The newest checkpoints of two runs hold the same weights, the same optimizer state and the same position.
void expect_same_bits(const Workspace& folder, const std::string& a, const std::string& b);
// metrics.jsonl has the steps 1, 2, ..., `steps`, each once and in order.
void expect_each_step_once(const Workspace& folder, const std::string& run, std::int64_t steps);

// Every file, folder and link below a folder with its bytes: equal before and after means nothing was touched.
std::map<std::string, std::string> contents(const std::filesystem::path& folder);

// The program refused, as it should: exit code, all of `words` in what it said on standard error, and neither a crash
// nor the message for bugs.
void expect_refused(const Outcome& outcome, Exit code, const std::vector<std::string>& words);
// It ended with that code, in time, without a crash.
void expect_ended(const Outcome& outcome, int code);

bool contains(const std::string& text, const std::string& part);
std::size_t count_of(const std::string& text, const std::string& part);

}  // namespace polaron::test

#include "support.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <tuple>

namespace polaron::test {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr unsigned kNobody = 65534;

std::int64_t now_ns() {
  struct timespec time {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

[[noreturn]] void fail_with_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

std::pair<int, int> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail_with_errno("pipe2");
  return {ends[0], ends[1]};
}

// A connection whose writer is stopped after a few unread lines: the kernel charges each of them with the smallest
// buffer, about 800 bytes, of the 4,600 that the least size allows.
std::pair<int, int> make_paced_connection() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) fail_with_errno("socketpair");
  const int least = 1;
  if (::setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof least) != 0) fail_with_errno("setsockopt");
  return {ends[0], ends[1]};
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

Process::Process(const fs::path& folder, const Arguments& arguments, const ProcessOptions& options) {
  deadline_ns_ = now_ns() + static_cast<std::int64_t>(options.seconds * 1e9);
  const auto [out, out_end] = options.paced ? make_paced_connection() : make_pipe();
  const auto [err, err_end] = make_pipe();
  Arguments words = options.launcher;
  words.push_back(POLARON_PROGRAM);
  words.insert(words.end(), arguments.begin(), arguments.end());
  const std::string& program = words.front();
  std::vector<char*> pointers;
  for (const std::string& each : words) pointers.push_back(const_cast<char*>(each.c_str()));
  pointers.push_back(nullptr);
  // Threads that spin while they wait for one another take seconds a step where tests run side by side.
  ::setenv("OMP_WAIT_POLICY", "passive", 0);
  id_ = ::fork();
  if (id_ < 0) fail_with_errno("fork");
  if (id_ == 0) {  // only what is safe in a signal handler from here on
    const int none = ::open("/dev/null", O_RDONLY);
    bool fine = none >= 0 && ::dup2(none, 0) == 0 && ::dup2(out_end, 1) == 1 && ::dup2(err_end, 2) == 2;
    fine = fine && ::chdir(folder.c_str()) == 0;
    if (options.nobody && ::geteuid() == 0) {
      fine = fine && ::setgroups(0, nullptr) == 0 && ::setgid(kNobody) == 0 && ::setuid(kNobody) == 0;
    }
    if (fine) ::execv(program.c_str(), pointers.data());
    ::_exit(127);
  }
  ::close(out_end);
  ::close(err_end);
  out_ = out;
  err_ = err;
}

Process::~Process() {
  if (id_ >= 0) {
    ::kill(id_, SIGKILL);
    ::waitpid(id_, nullptr, 0);
  }
  for (const int descriptor : {out_, err_}) {
    if (descriptor >= 0) ::close(descriptor);
  }
}

bool Process::read_some(std::size_t most) {
  if (out_ < 0 && err_ < 0) return false;
  const std::int64_t left = deadline_ns_ - now_ns();
  if (left <= 0) return false;
  std::array<pollfd, 2> streams{pollfd{out_, POLLIN, 0}, pollfd{err_, POLLIN, 0}};
  if (::poll(streams.data(), streams.size(), static_cast<int>(left / 1'000'000) + 1) < 0 && errno != EINTR) {
    fail_with_errno("poll");
  }
  const auto take = [&](int& descriptor, const pollfd& stream, std::string& to) {
    if (stream.revents == 0) return;
    std::array<char, 4096> buffer{};
    const auto count = ::read(descriptor, buffer.data(), std::min(most, buffer.size()));
    if (count > 0) {
      to.append(buffer.data(), static_cast<std::size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      ::close(descriptor);
      descriptor = -1;
    }
  };
  take(out_, streams[0], outcome_.out);
  take(err_, streams[1], outcome_.err);
  return true;
}

bool Process::read_until(const std::string& text) {
  while (!contains(outcome_.out, text)) {
    if (out_ < 0 || !read_some(64)) return false;
  }
  return true;
}

void Process::send(int signal) const { ASSERT_EQ(::kill(id_, signal), 0); }

Outcome Process::finish() {
  while (read_some(4096)) {
  }
  int status = 0;
  // Both streams are closed: it is about to end, or hangs.
  while (::waitpid(id_, &status, WNOHANG) == 0) {
    if (now_ns() >= deadline_ns_) {
      outcome_.hung = true;
      ::kill(id_, SIGKILL);
    }
    const struct timespec moment { 0, 500'000 };
    ::nanosleep(&moment, nullptr);
  }
  id_ = -1;
  if (WIFEXITED(status)) outcome_.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) outcome_.signal = WTERMSIG(status);
  return outcome_;
}

Workspace::Workspace() {
  std::string name = (fs::path(testing::TempDir()) / "polaron-cli-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) fail_with_errno("mkdtemp");
  path_ = name;
  fs::permissions(path_, fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec | fs::perms::others_read |
                             fs::perms::others_exec);
}

Workspace::~Workspace() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void Workspace::write(const std::string& name, const std::string& bytes) const {
  fs::create_directories((path_ / name).parent_path());
  std::ofstream file(path_ / name, std::ios::binary);
  file << bytes;
  if (!file.flush()) throw std::runtime_error("cannot write " + name);
}

std::string Workspace::read(const std::string& name) const { return read_file(path_ / name); }

void Workspace::write_data() const {
  write("data/train_0.bin", shard(tiny_language(6000, 1)));
  write("data/train_1.bin", shard(tiny_language(5000, 2)));
  write("data/validation_0.bin", shard(tiny_language(1500, 3)));
  write("data/vocabulary.json", json{{"format", "polaron vocabulary"},
                                     {"version", 1},
                                     {"kind", "bytes"},
                                     {"name", "bytes"},
                                     {"size", 257},
                                     {"separator", 256},
                                     {"special_tokens", {{"<|endoftext|>", 256}}}}
                                    .dump());
}

json Workspace::tiny_config(const json& patch) {
  json config = {{"threads", 1},
                 {"data", {{"train", "data/train_*.bin"}, {"validation", "data/validation_*.bin"}}},
                 {"model", {{"layers", 1}, {"width", 32}, {"heads", 4}, {"context_length", 16}}},
                 {"training", {{"steps", 20}, {"batch", 8}}},
                 {"optimizer", {{"matrices", {{"type", "low_rank_muon"}, {"rank", 8}}}}},
                 {"checkpoint", {{"every", 10}}}};
  config.merge_patch(patch);
  return config;
}

std::string Workspace::write_config(const std::string& name, const json& patch) const {
  json config = tiny_config(patch);
  if (!config.contains("output")) config["output"] = "runs/" + name;
  write(name + ".json", config.dump(2));
  return name + ".json";
}

Outcome Workspace::train(const std::string& name, const json& patch, const Arguments& more, int code) const {
  Arguments arguments{"train", write_config(name, patch)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  Outcome outcome = run(arguments);
  expect_ended(outcome, code);
  return outcome;
}

json Workspace::eval(const std::string& run_name, const Arguments& more) const {
  Arguments arguments{"eval", run_name, "--data", "data/validation_*.bin", "--json", "--threads", "1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Outcome outcome = run(arguments);
  expect_ended(outcome, 0);
  json result = json::parse(outcome.out, nullptr, false);
  if (!result.is_object()) throw std::runtime_error("eval --json printed: " + outcome.out);
  return result;
}

std::vector<json> Workspace::metrics(const std::string& name, const std::string& kind) const {
  std::vector<json> result;
  std::istringstream lines(read("runs/" + name + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    json record = json::parse(line);
    if (kind.empty() || record.at("kind") == kind) result.push_back(std::move(record));
  }
  return result;
}

std::vector<json> Workspace::spectra(const std::string& name) const {
  std::vector<json> result;
  std::istringstream lines(read("runs/" + name + "/spectra.jsonl"));
  for (std::string line; std::getline(lines, line);) result.push_back(json::parse(line));
  std::sort(result.begin(), result.end(), [](const json& a, const json& b) {
    return std::tuple(a.at("step"), a.at("matrix"), a.at("of")) < std::tuple(b.at("step"), b.at("matrix"), b.at("of"));
  });
  return result;
}

std::vector<double> Workspace::losses(const std::string& name) const {
  std::vector<double> result;
  for (const json& record : metrics(name)) result.push_back(record.at("loss").get<double>());
  return result;
}

std::vector<std::string> Workspace::checkpoints(const std::string& name) const {
  std::vector<std::string> names;
  const fs::path folder = path_ / "runs" / name / "checkpoints";
  if (!fs::exists(folder)) return names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string shard(const std::vector<int>& tokens, std::int32_t magic, std::int32_t version, std::int32_t count) {
  std::array<std::int32_t, 256> header{magic, version, count >= 0 ? count : static_cast<std::int32_t>(tokens.size())};
  std::string bytes(reinterpret_cast<const char*>(header.data()), sizeof header);
  for (const int token : tokens) {
    const auto id = static_cast<std::uint16_t>(token);
    bytes.append(reinterpret_cast<const char*>(&id), sizeof id);
  }
  return bytes;
}

std::vector<int> tiny_language(std::int64_t tokens, unsigned seed) {
  constexpr std::array<const char*, 8> words{"alpha ", "beta ", "gamma ", "delta ", "the ", "of ", "and ", "to "};
  std::mt19937 engine(seed);
  std::vector<int> result;
  while (static_cast<std::int64_t>(result.size()) < tokens) {
    result.push_back(256);
    for (int i = 0; i < 20; ++i) {
      for (const char* c = words[engine() % words.size()]; *c != '\0'; ++c) {
        result.push_back(static_cast<unsigned char>(*c));
      }
    }
  }
  result.resize(static_cast<std::size_t>(tokens));
  return result;
}

std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> result;
  if (!fs::exists(folder)) return result;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    if (entry.is_symlink()) {
      result[name] = "-> " + fs::read_symlink(entry.path()).string();
    } else {
      result[name] = entry.is_directory() ? "/" : read_file(entry.path());
    }
  }
  return result;
}

ProcessOptions paced() {
  ProcessOptions options;
  options.paced = true;
  return options;
}

void expect_same_bits(const Workspace& folder, const std::string& a, const std::string& b) {
  const auto file = [&](const std::string& run, const char* name) {
    return folder.read("runs/" + run + "/checkpoints/latest/" + name);
  };
  EXPECT_TRUE(file(a, "model.safetensors") == file(b, "model.safetensors"));
  EXPECT_TRUE(file(a, "optimizer.safetensors") == file(b, "optimizer.safetensors"));
  const auto state = [&](const std::string& run) {
    json j = json::parse(file(run, "trainer.json"));
    j.at("config").erase("name");
    j.at("config").erase("output");
    return j;
  };
  EXPECT_EQ(state(a), state(b));
}

void expect_each_step_once(const Workspace& folder, const std::string& run, std::int64_t steps) {
  std::vector<std::int64_t> found;
  for (const json& record : folder.metrics(run)) found.push_back(record.at("step").get<std::int64_t>());
  std::vector<std::int64_t> expected;
  for (std::int64_t step = 1; step <= steps; ++step) expected.push_back(step);
  EXPECT_EQ(found, expected);
}

void expect_ended(const Outcome& outcome, int code) {
  EXPECT_FALSE(outcome.hung) << "it did not end\n" << outcome.err;
  EXPECT_EQ(outcome.signal, 0) << "it was killed\n" << outcome.err;
  EXPECT_EQ(outcome.code, code) << outcome.err << outcome.out;
  for (const char* word : {"bug in polaron", "terminate called", "what():", "Sanitizer", "runtime error:"}) {
    EXPECT_FALSE(contains(outcome.err, word)) << outcome.err;
  }
}

void expect_refused(const Outcome& outcome, Exit code, const std::vector<std::string>& words) {
  expect_ended(outcome, static_cast<int>(code));
  for (const std::string& word : words) {
    EXPECT_TRUE(contains(outcome.err, word)) << "not said: " << word << "\n" << outcome.err;
  }
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

}  // namespace polaron::test

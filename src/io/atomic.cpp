#include "io/atomic.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "base/error.h"
#include "base/log.h"

namespace polaron {
namespace fs = std::filesystem;

namespace {

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

struct TemporaryName {
  std::string host;
  pid_t pid = 0;
};

// Parsed from the right: NAME and HOST may hold any of the separators.
std::optional<TemporaryName> parse_temporary_name(std::string_view name) {
  constexpr std::string_view mark = ".tmp-";
  const auto mark_at = name.rfind(mark);
  if (name.empty() || name.front() != '.' || mark_at == std::string_view::npos || mark_at < 2) return std::nullopt;
  const std::string_view owner = name.substr(mark_at + mark.size());
  const auto counter_at = owner.rfind('-');
  if (counter_at == std::string_view::npos || counter_at == 0) return std::nullopt;
  const auto pid_at = owner.rfind('-', counter_at - 1);
  if (pid_at == std::string_view::npos || pid_at == 0) return std::nullopt;
  const auto number = [](std::string_view digits, pid_t& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() && value >= 0;
  };
  TemporaryName result{std::string(owner.substr(0, pid_at))};
  pid_t counter = 0;
  if (!number(owner.substr(pid_at + 1, counter_at - pid_at - 1), result.pid) ||
      !number(owner.substr(counter_at + 1), counter)) {
    return std::nullopt;
  }
  return result;
}

// Calls make(path) with one temporary name after the other until it does not fail with EEXIST. `make` returns a
// descriptor (or any number from 0) or -1 with errno set.
template <typename Make>
std::pair<fs::path, int> make_temporary(const fs::path& final_path, const char* action, Make make) {
  if (!final_path.has_filename()) throw std::logic_error("a path to publish needs a name: " + final_path.string());
  const std::string prefix =
      fmt::format(".{}.tmp-{}-{}-", final_path.filename().string(), host_name(), static_cast<int>(::getpid()));
  for (int counter = 0;; ++counter) {
    fs::path temporary = final_path.parent_path() / (prefix + std::to_string(counter));
    const int result = make(temporary);
    if (result >= 0) return {std::move(temporary), result};
    if (errno != EEXIST) throw_file_error(action, final_path, errno);
  }
}

File open_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_file_error("open", folder, errno);
  return File(descriptor, folder);
}

void sync_folder(const fs::path& folder) { open_folder(folder.empty() ? "." : folder).sync(); }

void sync_tree(const fs::path& folder) {
  std::error_code failure;
  for (fs::directory_iterator entry(folder, failure), end; !failure && entry != end; entry.increment(failure)) {
    const fs::file_type type = entry->symlink_status(failure).type();
    if (failure) break;
    if (type == fs::file_type::directory) sync_tree(entry->path());
    if (type == fs::file_type::regular) File::open_for_reading(entry->path()).sync();
  }
  if (failure) throw_file_error("list", folder, failure.value());
  sync_folder(folder);
}

// A lock that its process holds until death. Not every file system has locks: see remove_stale_temporaries.
void lock(const File& file) { ::flock(file.descriptor(), LOCK_EX | LOCK_NB); }

// Removes a file that was not renamed away, whatever goes wrong before.
class RemoveOnExit {
 public:
  explicit RemoveOnExit(const fs::path& path) : path_(path) {}
  ~RemoveOnExit() {
    if (armed_) ::unlink(path_.c_str());
  }
  RemoveOnExit(const RemoveOnExit&) = delete;
  RemoveOnExit& operator=(const RemoveOnExit&) = delete;
  void disarm() { armed_ = false; }

 private:
  const fs::path& path_;
  bool armed_ = true;
};

}  // namespace

void write_file_atomically(const fs::path& path, std::string_view text) {
  const auto [temporary, descriptor] = make_temporary(path, "create", [](const fs::path& name) {
    return ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  });
  RemoveOnExit cleanup(temporary);
  File file(descriptor, path);
  lock(file);
  file.write_all(std::as_bytes(std::span(text)));
  file.sync();
  // The descriptor stays open over the rename, so that the lock does.
  if (::rename(temporary.c_str(), path.c_str()) != 0) throw_file_error("replace", path, errno);
  cleanup.disarm();
  file.close();
  sync_folder(path.parent_path());
}

AtomicDirectory::AtomicDirectory(fs::path final_path) : final_(std::move(final_path)), lock_(-1, final_) {
  if (!final_.has_filename()) final_ = final_.parent_path();  // "folder/" means "folder"
  temporary_ = make_temporary(final_, "create", [](const fs::path& name) { return ::mkdir(name.c_str(), 0777); }).first;
  try {
    lock_ = open_folder(temporary_);
    lock(lock_);
  } catch (...) {
    ::rmdir(temporary_.c_str());
    throw;
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (published_) return;
  try {
    std::error_code failure;
    fs::remove_all(temporary_, failure);
    if (failure) log::warn(fmt::format("cannot remove '{}': {}.", temporary_.string(), failure.message()));
  } catch (...) {  // a destructor has no other way to go on; the next start removes the leftover
  }
}

void AtomicDirectory::publish(IfPresent if_present) {
  if (published_) throw std::logic_error("AtomicDirectory::publish called twice for " + final_.string());
  sync_tree(temporary_);
  const char* const from = temporary_.c_str();
  const char* const to = final_.c_str();
  // The rename that refuses to overwrite even an empty folder; file systems without it say EINVAL.
  int result = ::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
  if (result != 0 && (errno == EINVAL || errno == ENOSYS)) {
    struct stat status {};
    const bool present = ::lstat(to, &status) == 0;
    result = present ? -1 : ::rename(from, to);
    if (present) errno = EEXIST;
  }
  if (result == 0) {
    published_ = true;
    return sync_folder(final_.parent_path());
  }
  if (errno != EEXIST || if_present == IfPresent::refuse) throw_file_error("publish", final_, errno);

  struct stat status {};
  if (::lstat(to, &status) == 0 && !S_ISDIR(status.st_mode)) throw_file_error("replace", final_, ENOTDIR);
  fs::path replaced = temporary_;
  if (::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) throw_file_error("replace", final_, errno);
    replaced = final_.parent_path() / (final_.filename().string() + ".old");
    std::error_code failure;
    fs::remove_all(replaced, failure);
    if (::rename(to, replaced.c_str()) != 0) throw_file_error("replace", final_, errno);
    if (::rename(from, to) != 0) {
      const int reason = errno;
      ::rename(replaced.c_str(), to);
      throw_file_error("replace", final_, reason);
    }
  }
  published_ = true;
  sync_folder(final_.parent_path());
  std::error_code failure;
  fs::remove_all(replaced, failure);
  if (failure) log::warn(fmt::format("cannot remove '{}': {}.", replaced.string(), failure.message()));
}

void point_symlink_atomically(const fs::path& link, const fs::path& target) {
  if (target.is_absolute()) throw std::logic_error("point_symlink_atomically: absolute target " + target.string());
  const fs::path temporary = make_temporary(link, "create the link", [&target](const fs::path& name) {
                               return ::symlink(target.c_str(), name.c_str());
                             }).first;
  RemoveOnExit cleanup(temporary);
  struct stat status {};
  if (::lstat(link.c_str(), &status) == 0 && !S_ISLNK(status.st_mode)) {
    throw Error(Exit::data,
                fmt::format("cannot make '{}' point to '{}': it exists and is not a symbolic link. Remove it "
                            "or rename it.",
                            link.string(), target.string()));
  }
  if (::rename(temporary.c_str(), link.c_str()) != 0) throw_file_error("replace the link", link, errno);
  cleanup.disarm();
  sync_folder(link.parent_path());
}

bool is_temporary_name(std::string_view name) { return parse_temporary_name(name).has_value(); }

namespace {

bool is_abandoned(const fs::path& path, const TemporaryName& name) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  const File file(descriptor, path);
  if (descriptor >= 0) {
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return true;
    if (errno == EWOULDBLOCK) return false;
  }
  return name.host == host_name() && ::kill(name.pid, 0) != 0 && errno == ESRCH;
}

}  // namespace

std::vector<std::string> remove_stale_temporaries(const fs::path& folder) {
  std::vector<fs::path> found;  // first listed, then removed: removing while listing may skip entries
  std::error_code failure;
  for (fs::directory_iterator entry(folder, failure), end; !failure && entry != end; entry.increment(failure)) {
    found.push_back(entry->path());
  }
  std::vector<std::string> removed;
  for (const fs::path& path : found) {
    const auto name = parse_temporary_name(path.filename().string());
    if (!name || !is_abandoned(path, *name)) continue;
    fs::remove_all(path, failure);
    if (!failure) removed.push_back(path.filename().string());
  }
  return removed;
}

}  // namespace polaron

#include "io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace polaron {
namespace {

const char* remedy(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return "Check the path";
    case EACCES:
    case EPERM:
      return "Check the permissions of the path and of the folders above it, or choose another folder";
    case EROFS:
      return "The file system is mounted read-only: choose another folder";
    case ENOSPC:
      return "Free some space, or choose a folder on another disk";
    case EDQUOT:
      return "The quota is used up: free some space, or choose a folder on another disk";
    case EFBIG:
      return "Raise the limit on file sizes (ulimit -f), or choose another file system";
    case EMFILE:
    case ENFILE:
      return "Raise the limit on open files (ulimit -n)";
    case EIO:
      return "The disk or its connection fails: see the system's log (dmesg)";
    case ENAMETOOLONG:
      return "Choose a shorter name";
    case EEXIST:
    case ENOTEMPTY:
      return "Remove it or choose another name";
    default:
      return "Check the path and the file system";
  }
}

// The largest single read or write: below the 2 GiB at which Linux cuts a call short anyway.
constexpr std::size_t largest_call = std::size_t{1} << 30;

}  // namespace

void throw_file_error(const std::string& action, const std::filesystem::path& path, int error_number,
                      std::uint64_t needed) {
  std::string space;
  if (error_number == ENOSPC || error_number == EDQUOT) {
    if (needed > 0) space += fmt::format(", {} more bytes are needed", needed);
    if (const auto available = free_bytes(path)) space += fmt::format(", {} bytes are free", *available);
  }
  throw Error(Exit::data, fmt::format("cannot {} '{}': {}{}. {}.", action, path.string(),
                                      std::generic_category().message(error_number), space, remedy(error_number)));
}

std::string in_quotes(std::string_view name) {
  constexpr std::size_t longest = 120;
  std::string text = "\"";
  for (const char c : name.substr(0, longest)) {
    const auto code = static_cast<unsigned char>(c);
    text += code < 0x20 || code == 0x7f ? '?' : c;
  }
  return text + (name.size() > longest ? "...\"" : "\"");
}

File File::open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not hang; it means nothing for a regular file.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_file_error("open", path, errno);
  File file(descriptor, path);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) throw_file_error("examine", path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw Error(Exit::data, fmt::format("cannot read '{}': it is {}, not a file. Give the path of a file.",
                                        path.string(), S_ISDIR(status.st_mode) ? "a folder" : "a device or pipe"));
  }
  return file;
}

File File::open_for_writing(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_file_error("create", path, errno);
  return File(descriptor, path);
}

File::File(int descriptor, std::filesystem::path path) : descriptor_(descriptor), path_(std::move(path)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

std::uint64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw_file_error("examine", path_, errno);
  return static_cast<std::uint64_t>(status.st_size);
}

void File::read_at(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const auto count = ::pread(descriptor_, out.data(), std::min(out.size(), largest_call), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_file_error(fmt::format("read at byte {} of", offset), path_, errno);
    if (count == 0) {
      throw Error(Exit::data, fmt::format("'{}' ends at byte {} where {} more are expected. It was cut short, or "
                                          "another program changes it: copy or write it again.",
                                          path_.string(), offset, out.size()));
    }
    offset += static_cast<std::uint64_t>(count);
    out = out.subspan(static_cast<std::size_t>(count));
  }
}

void File::write_all(std::span<const std::byte> bytes, std::uint64_t needed_after) {
  while (!bytes.empty()) {
    const auto count = ::write(descriptor_, bytes.data(), std::min(bytes.size(), largest_call));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_file_error("write", path_, errno, bytes.size() + needed_after);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void File::sync() {
  int result = 0;
  do {
    result = ::fsync(descriptor_);
  } while (result != 0 && errno == EINTR);
  // Some file systems (and all pipes and devices) have nothing to sync and say so by EINVAL.
  if (result != 0 && errno != EINVAL && errno != ENOTSUP) throw_file_error("flush to disk", path_, errno);
}

void File::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  // Never repeated, not even after EINTR: Linux has released the descriptor in every case.
  if (descriptor >= 0 && ::close(descriptor) != 0 && errno != EINTR) throw_file_error("finish writing", path_, errno);
}

std::string read_text_file(const std::filesystem::path& path, std::uint64_t limit) {
  const File file = File::open_for_reading(path);
  const std::uint64_t size = file.size();
  if (size > limit) {
    throw Error(Exit::data,
                fmt::format("'{}' holds {} bytes, more than the {} that such a file can have. Check that it "
                            "is the right file.",
                            path.string(), size, limit));
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

std::optional<std::uint64_t> free_bytes(const std::filesystem::path& path) {
  std::error_code ignored;
  std::filesystem::path existing = std::filesystem::absolute(path, ignored);
  if (ignored) return std::nullopt;
  struct statvfs status {};
  while (::statvfs(existing.c_str(), &status) != 0) {
    if ((errno != ENOENT && errno != ENOTDIR) || existing == existing.parent_path()) return std::nullopt;
    existing = existing.parent_path();
  }
  return static_cast<std::uint64_t>(status.f_bavail) * static_cast<std::uint64_t>(status.f_frsize);
}

}  // namespace polaron

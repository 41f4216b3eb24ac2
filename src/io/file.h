// A POSIX file descriptor that closes itself and whose errors are Errors: every failed call throws Error(Exit::data)
// that names the path, the system's reason and a remedy. Calls interrupted by a signal are repeated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace polaron {

class File {
 public:
  // Refuses anything but a regular file (a folder, a pipe, a device).
  static File open_for_reading(const std::filesystem::path& path);
  // Creates the file, or empties the one that is there.
  static File open_for_writing(const std::filesystem::path& path);
  // Takes over an open descriptor; `path` is for messages.
  File(int descriptor, std::filesystem::path path);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }
  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const;  // bytes

  // Reads exactly out.size() bytes from byte `offset` on; a file that ends before is an Error. Several threads may
  // read.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const;
  // Appends all bytes. `needed_after`: how many more the caller means to write, for the message when the disk is full.
  void write_all(std::span<const std::byte> bytes, std::uint64_t needed_after = 0);
  void sync();   // the bytes are on the disk when it returns; folders may be synced too
  void close();  // reports what some file systems report only here; the destructor stays silent

 private:
  int descriptor_ = -1;
  std::filesystem::path path_;
};

// The whole file. One of more than `limit` bytes is refused: it cannot be what the caller expects.
std::string read_text_file(const std::filesystem::path& path, std::uint64_t limit = std::uint64_t{1} << 30);

// Bytes this process may still write to the file system of `path` (of its nearest parent where `path` does not exist
// yet); nothing where the system does not say.
std::optional<std::uint64_t> free_bytes(const std::filesystem::path& path);

// Throws Error(Exit::data): "cannot <action> '<path>': <reason>. <remedy>". For a full disk or quota the message also
// says how many bytes are still `needed` (where that is known: not 0) and how many are free.
[[noreturn]] void throw_file_error(const std::string& action, const std::filesystem::path& path, int error_number,
                                   std::uint64_t needed = 0);

// A name that came from a file, for a message: in double quotes, control characters replaced, cut to 120 bytes.
std::string in_quotes(std::string_view name);

}  // namespace polaron

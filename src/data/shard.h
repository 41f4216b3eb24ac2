// Shards: files of token ids (docs/formats.md, "Shards"), mapped into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace polaron {

// One shard file, read-only. Both forms are accepted: magic 20240520, version 1, uint16 ids; and magic 20240801,
// version 7, uint32 ids. Owns the mapping. Reading from several threads at once is safe. The file must not be shortened
// while it is open: like any mapped file, reading past its new end kills the process (SIGBUS).
class Shard {
 public:
  // Throws Error(Exit::data) that names the file, the offset and what to do about it: a file that cannot be opened,
  // wrong magic or version, a negative count, a truncated tail or trailing bytes.
  explicit Shard(std::string path);
  ~Shard();
  Shard(Shard&& other) noexcept;
  Shard& operator=(Shard&& other) noexcept;
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t tokens() const { return tokens_; }
  int bytes_per_token() const { return bytes_per_token_; }  // 2 or 4

  // Copies the ids at [position, position + out.size()) to `out`. An id over 2^31 - 1 arrives as a negative number,
  // which no vocabulary holds. Throws std::logic_error for a range outside the shard.
  void read(std::int64_t position, std::span<std::int32_t> out) const;

  // Where in the file the token at `position` starts, for error messages.
  std::int64_t byte_offset(std::int64_t position) const;

 private:
  void unmap() noexcept;

  std::string path_;
  const std::byte* data_ = nullptr;  // the whole file, header included
  std::size_t bytes_ = 0;
  std::int64_t tokens_ = 0;
  int bytes_per_token_ = 2;
};

// The files that match a glob pattern (POSIX glob, with {a,b} and ~), sorted by their bytes whatever the locale is.
// Throws Error(Exit::data) naming the pattern where no file matches.
std::vector<std::string> expand_pattern(const std::string& pattern);

// Opens every file of expand_pattern(pattern), in that order.
std::vector<Shard> open_shards(const std::string& pattern);

}  // namespace polaron

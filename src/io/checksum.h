// Checksums (XXH3, 64 bits, seed 0: the xxHash library) and the manifest `checksums.json` of a folder. They find damage
// by disks, copies and interrupted transfers; they are no defence against a forger.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>

namespace polaron {

// The checksum of bytes that come in pieces; how they are cut does not matter.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(Checksum&&) noexcept;
  Checksum& operator=(Checksum&&) noexcept;

  void update(std::span<const std::byte> bytes);
  std::uint64_t value() const;  // of all bytes so far; more may follow

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What is known about the content of a file.
struct FileDigest {
  std::uint64_t bytes = 0;
  std::uint64_t xxh3 = 0;
  bool operator==(const FileDigest&) const = default;
};

// 16 lower-case hexadecimal digits, most significant first, as xxhsum prints them.
std::string checksum_to_hex(std::uint64_t checksum);

// Reads the whole file. Error(Exit::data) where it cannot be read.
FileDigest digest_file(const std::filesystem::path& path);

// Digests by the file's path relative to the manifest's folder, '/' between its parts.
using Manifest = std::map<std::string, FileDigest>;

inline constexpr const char* manifest_name = "checksums.json";

// Writes <folder>/checksums.json over every regular file below `folder` (but itself and temporaries). Files named in
// `known` (say by SafetensorsWriter::finish) are not read again; std::logic_error where `known` names a file that is
// not there or is of another size.
void write_manifest(const std::filesystem::path& folder, const Manifest& known = {});

// Error(Exit::data) where the manifest is missing or is not one.
Manifest read_manifest(const std::filesystem::path& folder);

// Reads every file that the manifest lists and compares. Error(Exit::data) names the first file that is missing, has
// another size, or has other bytes. Files that are not listed are no error: people add notes.
void verify_manifest(const std::filesystem::path& folder);

// Whether there is one to verify: a checkpoint that another program wrote has none.
bool has_manifest(const std::filesystem::path& folder);

}  // namespace polaron

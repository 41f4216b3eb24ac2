#include "io/checksum.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <vector>

#include "base/error.h"
#include "io/atomic.h"
#include "io/file.h"
#include "io/json_file.h"

namespace polaron {
namespace fs = std::filesystem;

struct Checksum::State {
  XXH3_state_t xxh3;
};

Checksum::Checksum() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh3); }
Checksum::~Checksum() = default;
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum& Checksum::operator=(Checksum&&) noexcept = default;

void Checksum::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_64bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::uint64_t Checksum::value() const { return XXH3_64bits_digest(&state_->xxh3); }

std::string checksum_to_hex(std::uint64_t checksum) { return fmt::format("{:016x}", checksum); }

FileDigest digest_file(const fs::path& path) {
  const File file = File::open_for_reading(path);
  const std::uint64_t size = file.size();
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(size, std::uint64_t{1} << 20)));
  Checksum checksum;
  for (std::uint64_t offset = 0; offset < size; offset += buffer.size()) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), size - offset));
    file.read_at(offset, std::span(buffer).first(count));
    checksum.update(std::span(buffer).first(count));
  }
  return {size, checksum.value()};
}

namespace {

constexpr const char* algorithm_name = "xxh3_64";

std::optional<std::uint64_t> checksum_from_hex(const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || checksum_to_hex(value) != text) return std::nullopt;
  return value;
}

// A path that stays below the folder: a manifest must not make us read elsewhere.
bool is_inside(const std::string& name) {
  const fs::path path(name);
  return path.has_filename() && path.is_relative() && path.lexically_normal().generic_string() == name &&
         *path.begin() != ".." && *path.begin() != ".";
}

[[noreturn]] void refuse(const fs::path& manifest, const std::string& problem) {
  throw Error(Exit::data, fmt::format("'{}' is damaged: {}. Use another copy of the folder or an earlier checkpoint.",
                                      manifest.string(), problem));
}

}  // namespace

void write_manifest(const fs::path& folder, const Manifest& known) {
  Manifest manifest;
  std::error_code failure;
  for (fs::recursive_directory_iterator entry(folder, failure), end; !failure && entry != end;
       entry.increment(failure)) {
    const std::string name = entry->path().lexically_relative(folder).generic_string();
    const fs::file_type type = entry->status(failure).type();
    if (failure) break;
    if (is_temporary_name(entry->path().filename().string())) {
      if (type == fs::file_type::directory) entry.disable_recursion_pending();
      continue;
    }
    if (type != fs::file_type::regular || name == manifest_name) continue;
    const auto digest = known.find(name);
    manifest[name] = digest == known.end() ? digest_file(entry->path()) : digest->second;
    if (digest != known.end() && digest->second.bytes != File::open_for_reading(entry->path()).size()) {
      throw std::logic_error("write_manifest: the size given for " + name + " is not that of the file");
    }
  }
  if (failure) throw_file_error("list", folder, failure.value());
  for (const auto& [name, digest] : known) {
    if (!manifest.contains(name)) throw std::logic_error("write_manifest: no file " + name + " in " + folder.string());
  }

  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  for (const auto& [name, digest] : manifest) {
    files[name] = {{"bytes", digest.bytes}, {algorithm_name, checksum_to_hex(digest.xxh3)}};
  }
  const nlohmann::ordered_json json = {{"algorithm", algorithm_name}, {"files", files}};
  write_file_atomically(folder / manifest_name, json.dump(2) + "\n");
}

Manifest read_manifest(const fs::path& folder) {
  const fs::path path = folder / manifest_name;
  const nlohmann::json json = read_json_file(path, std::uint64_t{1} << 26);
  if (!json.is_object() || json.size() != 2 || !json.contains("algorithm") || !json.contains("files") ||
      !json["files"].is_object()) {
    refuse(path, "it is not an object of \"algorithm\" and \"files\"");
  }
  if (json["algorithm"] != algorithm_name) {
    refuse(path, fmt::format("its algorithm is not \"{}\", the only one that is known", algorithm_name));
  }
  Manifest manifest;
  for (const auto& [name, entry] : json["files"].items()) {
    if (!is_inside(name))
      refuse(path, fmt::format("the file name {} does not stay inside the folder", in_quotes(name)));
    std::optional<std::uint64_t> checksum;
    if (entry.is_object() && entry.size() == 2 && entry.contains("bytes") && entry["bytes"].is_number_unsigned() &&
        entry.contains(algorithm_name) && entry[algorithm_name].is_string()) {
      checksum = checksum_from_hex(entry[algorithm_name].get_ref<const std::string&>());
    }
    if (!checksum) {
      refuse(path, fmt::format("the entry of {} is not an object of \"bytes\" and 16 lower-case hexadecimal digits "
                               "\"{}\"",
                               in_quotes(name), algorithm_name));
    }
    manifest[name] = {entry["bytes"].get<std::uint64_t>(), *checksum};
  }
  return manifest;
}

void verify_manifest(const fs::path& folder) {
  for (const auto& [name, expected] : read_manifest(folder)) {
    const fs::path path = folder / name;
    const std::string remedy = "Use another copy of the folder or an earlier checkpoint.";
    std::error_code failure;  // anything but "not there" is reported by the attempt to open it
    if (!fs::exists(path, failure) && !failure) {
      throw Error(Exit::data, fmt::format("'{}' is missing although '{}' lists it. {}", path.string(),
                                          (folder / manifest_name).string(), remedy));
    }
    const std::uint64_t size = File::open_for_reading(path).size();
    if (size != expected.bytes) {
      throw Error(
          Exit::data,
          fmt::format("'{}' has {} bytes where {} were written: it is {}. {}", path.string(), size, expected.bytes,
                      size < expected.bytes ? "cut short" : "not the file that was written", remedy));
    }
    if (const FileDigest found = digest_file(path); found != expected) {
      throw Error(Exit::data,
                  fmt::format("'{}' has other bytes than were written: its checksum is {} instead of {}. {}",
                              path.string(), checksum_to_hex(found.xxh3), checksum_to_hex(expected.xxh3), remedy));
    }
  }
}

bool has_manifest(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / manifest_name, ignored);
}

}  // namespace polaron

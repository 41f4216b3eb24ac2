// Strict JSON from a file that a program wrote (manifests, indices, vocabularies, trainer.json). Not for configs, which
// people write: config/ has comments, JSON pointers and suggestions. Include this in .cpp files only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace polaron {

// The value that `text` (UTF-8) holds. Refused with Error(Exit::data), whose message starts with `origin` (say "the
// index 'PATH'") and names the place: anything that is not JSON, a key that occurs twice in one object, nesting deeper
// than 64.
nlohmann::json parse_json(std::string_view text, const std::string& origin);

// parse_json of a file of at most `limit` bytes.
nlohmann::json read_json_file(const std::filesystem::path& path, std::uint64_t limit = std::uint64_t{1} << 30);

}  // namespace polaron

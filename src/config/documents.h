// From files and command-line overrides to one JSON document, before its keys mean anything: comments, duplicate keys,
// "extends", merging, --set. Internal to src/config.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace polaron {

// Keys in the order in which they were written, so that messages and to_json follow it. Finding a key takes as long as
// the object has keys; parse_strict allows 1000.
using Json = nlohmann::ordered_json;

// Error(Exit::usage) "<origin>: <pointer>: <text>", without an empty pointer.
[[noreturn]] void refuse(const std::string& origin, const std::string& pointer, const std::string& text);

// `pointer` with "/key" appended, "~" and "/" in the key escaped (RFC 6901) and a very long key cut.
std::string join_pointer(const std::string& pointer, std::string_view key);

// Called with each layer (a file of an "extends" chain, or the document after one override) and the words that name it
// in messages; throws where a key is unknown or a value has the wrong type.
using LayerCheck = std::function<void(const Json& layer, const std::string& origin)>;

// The bytes of a config file; Error(Exit::usage) when it is missing, unreadable or larger than 1 MiB.
std::string read_config_text(const std::filesystem::path& path, const std::string& named_by);

// JSON text with // and /* */ comments; Error(Exit::usage) with line and column, or with the pointer of a duplicate
// key.
Json parse_strict(std::string_view text, const std::string& origin);

// `text` over the files that it extends, then the overrides. "extends" and "$schema" are gone from the result, and so
// are nulls, which take an inherited key away. How layers combine: docs/config.md, "Layers".
Json combine_layers(std::string_view text, const std::string& origin, std::span<const std::string> overrides,
                    const LayerCheck& check);

}  // namespace polaron

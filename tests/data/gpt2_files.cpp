#include "gpt2_files.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/error.h"

namespace polaron::testing_data {
namespace {

using Json = nlohmann::json;

constexpr const char* separator = "<|endoftext|>";
constexpr const char* pattern = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// GPT-2 writes a token's bytes as one printable character each: the printable bytes of Latin-1 stand for themselves,
// the others, in order, for U+0100 and up. The result maps such a character to its byte.
std::unordered_map<char32_t, char> byte_of_character() {
  std::unordered_map<char32_t, char> bytes;
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    bytes.emplace(printable ? static_cast<char32_t>(byte) : next++, static_cast<char>(byte));
  }
  return bytes;
}

// The bytes that a token's printable form (UTF-8 of characters under U+0800) stands for; nothing where it is not such a
// form.
std::optional<std::string> token_bytes(std::string_view printable) {
  static const auto bytes = byte_of_character();
  std::string token;
  for (std::size_t i = 0; i < printable.size(); ++i) {
    char32_t character = static_cast<unsigned char>(printable[i]);
    if (character >= 0xc0 && character < 0xe0 && i + 1 < printable.size()) {
      character = (character & 0x1f) << 6 | (static_cast<unsigned char>(printable[++i]) & 0x3f);
    } else if (character >= 0x80) {
      return std::nullopt;
    }
    const auto found = bytes.find(character);
    if (found == bytes.end()) return std::nullopt;
    token += found->second;
  }
  return token;
}

Json read_vocabulary(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(Exit::data, fmt::format("{}: cannot be read.", path));
  Json vocabulary = Json::parse(file, nullptr, false);
  if (!vocabulary.is_object()) throw Error(Exit::data, fmt::format("{}: not a JSON object of tokens and ids.", path));
  return vocabulary;
}

}  // namespace

std::string base64_of(std::string_view bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t taken = bytes.size() - i < 3 ? bytes.size() - i : 3;
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8 | (j < taken ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (std::size_t j = 0; j < 4; ++j) text += j <= taken ? digits[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

Vocabulary gpt2_vocabulary(const std::string& vocabulary_path, const std::string& merges_path) {
  const Json vocabulary = read_vocabulary(vocabulary_path);
  const std::size_t size = vocabulary.size();
  Json tokens(size, nullptr);
  Json special = Json::object();
  Json separator_id;
  for (const auto& [text, value] : vocabulary.items()) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= size) {
      throw Error(Exit::data, fmt::format("{}: the id of '{}' is not a number under {}.", vocabulary_path, text, size));
    }
    if (text == separator) {
      special[text] = separator_id = value;
    } else if (const auto bytes = token_bytes(text)) {
      tokens[value.get<std::size_t>()] = base64_of(*bytes);
    } else {
      throw Error(Exit::data, fmt::format("{}: '{}' is not a token of a byte-level BPE.", vocabulary_path, text));
    }
  }

  std::ifstream file(merges_path);
  if (!file) throw Error(Exit::data, fmt::format("{}: cannot be read.", merges_path));
  Json merges = Json::array();
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    const auto space = line.find(' ');
    const auto left = vocabulary.find(line.substr(0, space));
    const auto right = vocabulary.find(space == std::string::npos ? "" : line.substr(space + 1));
    if (left == vocabulary.end() || right == vocabulary.end()) {
      throw Error(Exit::data,
                  fmt::format("{}: line {} is not a pair of tokens of {}.", merges_path, number, vocabulary_path));
    }
    merges.push_back({*left, *right});
  }
  const Json result = {{"format", "polaron vocabulary"},
                       {"version", 1},
                       {"kind", "byte_level_bpe"},
                       {"name", "gpt2"},
                       {"size", size},
                       {"separator", separator_id},
                       {"special_tokens", special},
                       {"pattern", pattern},
                       {"ignore_merges", false},
                       {"tokens", tokens},
                       {"merges", merges}};
  return Vocabulary::parse(result.dump(), vocabulary_path);
}

}  // namespace polaron::testing_data

#include "data/vocabulary.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "data/base64.h"
#include "data/byte_pair.h"
#include "data/pretokenizer.h"
#include "io/json_file.h"

namespace polaron {
namespace {

using Json = nlohmann::json;

constexpr std::string_view format_name = "polaron vocabulary";
constexpr int format_version = 1;
constexpr std::int64_t largest_size = std::int64_t{1} << 30;
constexpr std::string_view replacement = "\xef\xbf\xbd";  // U+FFFD

// Typed access to one vocabulary file; every failure names the file and the JSON pointer.
class Reader {
 public:
  Reader(const std::string& text, std::string source) : source_(std::move(source)) {
    // As strictly as a checkpoint, where a copy of the file comes to lie, is read.
    try {
      root_ = parse_json(text, source_);
    } catch (const Error& error) {
      throw Error(Exit::data, fmt::format("{} Prepare the data again, or copy the file again.", error.what()));
    }
    if (!root_.is_object()) fail("", "must be an object");
  }

  [[noreturn]] void fail(const std::string& pointer, const std::string& what) const {
    throw Error(Exit::data,
                fmt::format("{}: not a valid vocabulary file: '{}' {}. docs/formats.md describes the format.", source_,
                            pointer.empty() ? "/" : pointer, what));
  }

  const std::string& source() const { return source_; }

  const Json* find(const char* key) const {
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? nullptr : &*found;
  }
  const Json& at(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) fail(pointer(key), "is missing");
    return *value;
  }
  std::string text(const char* key) const {
    const Json& value = at(key);
    if (!value.is_string()) fail(pointer(key), "must be a string");
    return value.get<std::string>();
  }
  // An integer in [low, high].
  std::int64_t integer(const Json& value, const std::string& where, std::int64_t low, std::int64_t high) const {
    if (!is_integer(value, low, high)) fail(where, fmt::format("must be an integer from {} to {}", low, high));
    return value.get<std::int64_t>();
  }
  static bool is_integer(const Json& value, std::int64_t low, std::int64_t high) {
    if (!value.is_number_integer()) return false;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{1} << 62) return false;
    return value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
  }
  static std::string pointer(const char* key) { return fmt::format("/{}", key); }

 private:
  std::string source_;
  Json root_;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(Exit::data, fmt::format("{}: cannot be opened: {}.", path, std::strerror(errno)));
  try {
    return {std::istreambuf_iterator<char>(file), {}};
  } catch (const std::ios_base::failure& failure) {  // a folder, or a broken disk
    throw Error(Exit::data, fmt::format("{}: cannot be read: {}.", path, failure.code().message()));
  }
}

}  // namespace

struct Vocabulary::Tables {
  Kind kind = Kind::opaque;
  std::string json;
  std::string name;
  std::int64_t size = 0;
  std::int32_t separator = -1;
  std::vector<std::optional<std::string>> tokens;  // [size] bytes that an id stands for; empty for an opaque vocabulary
  // Of byte_level_bpe alone:
  std::optional<PreTokenizer> pretokenizer;
  std::optional<BytePairMerges> merges;
  std::unordered_map<std::string, std::int32_t> whole_pieces;  // pieces that are tokens as they are, where merges are
                                                               // ignored for those

  void read_byte_pairs(const Reader& reader);
  void read_special_tokens(const Reader& reader);
};

void Vocabulary::Tables::read_byte_pairs(const Reader& reader) {
  pretokenizer.emplace(reader.text("pattern"), reader.source());

  const Json& list = reader.at("tokens");
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != size) {
    reader.fail("/tokens", fmt::format("must be an array of 'size' = {} entries", size));
  }
  tokens.resize(list.size());
  std::unordered_map<std::string, std::int32_t> id_of;
  id_of.reserve(list.size());
  for (std::size_t id = 0; id < list.size(); ++id) {
    if (list[id].is_null()) continue;
    auto bytes = list[id].is_string() ? base64::decode(list[id].get_ref<const std::string&>()) : std::nullopt;
    if (!bytes || bytes->empty()) {
      reader.fail(fmt::format("/tokens/{}", id), "must be null or the base64 of at least one byte");
    }
    if (!id_of.try_emplace(*bytes, static_cast<std::int32_t>(id)).second) {
      reader.fail(fmt::format("/tokens/{}", id), "has the same bytes as an entry before it");
    }
    tokens[id] = std::move(bytes);
  }

  std::array<std::int32_t, 256> byte_tokens{};
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = id_of.find(std::string(1, static_cast<char>(byte)));
    if (found == id_of.end()) reader.fail("/tokens", fmt::format("has no entry for the single byte {}", byte));
    byte_tokens[byte] = found->second;
  }
  merges.emplace(byte_tokens);

  const Json& pairs = reader.at("merges");
  if (!pairs.is_array()) reader.fail("/merges", "must be an array of pairs of ids");
  for (std::size_t rank = 0; rank < pairs.size(); ++rank) {
    const auto where = [rank] { return fmt::format("/merges/{}", rank); };
    const Json& pair = pairs[rank];
    if (!pair.is_array() || pair.size() != 2 || !Reader::is_integer(pair[0], 0, size - 1) ||
        !Reader::is_integer(pair[1], 0, size - 1)) {
      reader.fail(where(), fmt::format("must be a pair of ids from 0 to {}", size - 1));
    }
    const auto left = pair[0].get<std::int64_t>();
    const auto right = pair[1].get<std::int64_t>();
    if (!tokens[left] || !tokens[right]) reader.fail(where(), "names an id without bytes");
    const auto merged = id_of.find(*tokens[left] + *tokens[right]);
    if (merged == id_of.end()) reader.fail(where(), "makes bytes that are no token");
    merges->add(static_cast<std::int32_t>(left), static_cast<std::int32_t>(right), merged->second);
  }

  if (const Json* ignore = reader.find("ignore_merges")) {
    if (!ignore->is_boolean()) reader.fail("/ignore_merges", "must be true or false");
    if (ignore->get<bool>()) whole_pieces = std::move(id_of);
  }
}

void Vocabulary::Tables::read_special_tokens(const Reader& reader) {
  const Json* special = reader.find("special_tokens");
  if (special == nullptr) return;
  if (!special->is_object()) reader.fail("/special_tokens", "must be an object of names and ids");
  for (const auto& [text, id] : special->items()) {
    const std::string where = "/special_tokens/" + text;
    const auto index = static_cast<std::size_t>(reader.integer(id, where, 0, size - 1));
    if (tokens.empty()) continue;
    if (tokens[index]) reader.fail(where, "has the id of an ordinary token");
    tokens[index] = text;
  }
}

Vocabulary Vocabulary::parse(std::string json, const std::string& source) {
  const Reader reader(json, source);
  if (reader.text("format") != format_name) reader.fail("/format", fmt::format("must be '{}'", format_name));
  const std::int64_t version = reader.integer(reader.at("version"), "/version", 1, std::int64_t{1} << 31);
  if (version > format_version) {
    throw Error(Exit::data, fmt::format("{}: vocabulary format version {}, newer than this program reads ({}). Update "
                                        "polaron.",
                                        source, version, format_version));
  }

  auto tables = std::make_unique<Tables>();
  const std::string kind = reader.text("kind");
  tables->name = reader.text("name");
  tables->size = reader.integer(reader.at("size"), "/size", 1, largest_size);
  if (const Json* separator = reader.find("separator")) {
    tables->separator = static_cast<std::int32_t>(reader.integer(*separator, "/separator", 0, tables->size - 1));
  }
  if (kind == "bytes") {
    tables->kind = Kind::bytes;
    reader.integer(reader.at("size"), "/size", 256, 65536);
    tables->tokens.resize(static_cast<std::size_t>(tables->size));
    for (int byte = 0; byte < 256; ++byte) tables->tokens[byte] = std::string(1, static_cast<char>(byte));
  } else if (kind == "byte_level_bpe") {
    tables->kind = Kind::byte_level_bpe;
    tables->read_byte_pairs(reader);
  } else if (kind != "opaque") {
    reader.fail("/kind", "must be 'bytes', 'byte_level_bpe' or 'opaque'");
  }
  tables->read_special_tokens(reader);
  tables->json = std::move(json);
  return Vocabulary(std::move(tables));
}

Vocabulary Vocabulary::load(const std::string& path) { return parse(read_file(path), path); }

std::optional<Vocabulary> Vocabulary::find_beside(const std::string& shard_path) {
  const auto path = std::filesystem::path(shard_path).parent_path() / "vocabulary.json";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return load(path.string());
}

Vocabulary::Vocabulary(std::unique_ptr<const Tables> tables) : tables_(std::move(tables)) {}
Vocabulary::~Vocabulary() = default;
Vocabulary::Vocabulary(Vocabulary&&) noexcept = default;
Vocabulary& Vocabulary::operator=(Vocabulary&&) noexcept = default;

Vocabulary::Kind Vocabulary::kind() const { return tables_->kind; }
const std::string& Vocabulary::name() const { return tables_->name; }
std::int64_t Vocabulary::size() const { return tables_->size; }
std::int32_t Vocabulary::separator_token() const { return tables_->separator; }
bool Vocabulary::same_ids(const Vocabulary& other) const {
  const Tables &a = *tables_, &b = *other.tables_;
  return a.kind == b.kind && a.size == b.size && a.separator == b.separator && a.tokens == b.tokens &&
         (a.kind != Kind::opaque || a.name == b.name);
}
const std::string& Vocabulary::json() const { return tables_->json; }

std::vector<std::int32_t> Vocabulary::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  switch (tables_->kind) {
    case Kind::bytes:
      for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
      break;
    case Kind::byte_level_bpe:
      for (const std::string_view piece : tables_->pretokenizer->split(text)) {
        const auto whole = tables_->whole_pieces.empty() ? tables_->whole_pieces.end()
                                                         : tables_->whole_pieces.find(std::string(piece));
        if (whole != tables_->whole_pieces.end()) {
          ids.push_back(whole->second);
        } else {
          tables_->merges->encode(piece, ids);
        }
      }
      break;
    case Kind::opaque:
      throw Error(Exit::usage, fmt::format("this program cannot run the tokenizer '{}': give the prompt as token ids "
                                           "(--prompt-ids).",
                                           tables_->name));
  }
  return ids;
}

std::string Vocabulary::decode(std::span<const std::int32_t> ids) const {
  if (tables_->kind == Kind::opaque) return fmt::format("{}", fmt::join(ids, " "));
  std::string bytes;
  for (const std::int32_t id : ids) {
    const bool known = id >= 0 && id < tables_->size && tables_->tokens[id].has_value();
    bytes += known ? std::string_view(*tables_->tokens[id]) : replacement;
  }
  return bytes;
}

}  // namespace polaron

// Text to token ids and back, from the vocabulary file that lies beside the shards and in every checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace polaron {

// One vocabulary file (docs/formats.md, "Vocabulary"). Immutable; one object may be used from several threads.
class Vocabulary {
 public:
  enum class Kind {
    bytes,           // ids 0 .. 255 are the bytes
    byte_level_bpe,  // byte-pair encoding on bytes, as in GPT-2
    opaque,          // a tokenizer that this program cannot run: size and name alone
  };

  // Reads a vocabulary file. Throws Error(Exit::data) that names the file and the place in it.
  static Vocabulary load(const std::string& path);
  // The same from the text of such a file; `source` stands for its name in messages.
  static Vocabulary parse(std::string json, const std::string& source);
  // The file vocabulary.json in the folder of `shard_path`, where there is one. Throws as load does where there is, but
  // is not in order.
  static std::optional<Vocabulary> find_beside(const std::string& shard_path);

  ~Vocabulary();
  Vocabulary(Vocabulary&&) noexcept;
  Vocabulary& operator=(Vocabulary&&) noexcept;

  Kind kind() const;
  const std::string& name() const;
  std::int64_t size() const;             // ids are 0 .. size() - 1
  std::int32_t separator_token() const;  // opens each document; -1: none
  // Whether ids mean the same: their number, the bytes of each and the separator; the names of opaque ones.
  bool same_ids(const Vocabulary& other) const;
  const std::string& json() const;  // the text of the vocabulary file, to be written into a checkpoint

  // The ids of `text`, any bytes at all. Names of special tokens in it are ordinary text. Throws Error(Exit::usage) for
  // an opaque vocabulary, saying to give the ids themselves.
  std::vector<std::int32_t> encode(std::string_view text) const;

  // The bytes of `ids`, not necessarily valid UTF-8. A special token gives its name, an id that has no bytes U+FFFD. An
  // opaque vocabulary gives the ids as numbers with spaces between them.
  std::string decode(std::span<const std::int32_t> ids) const;

 private:
  struct Tables;
  explicit Vocabulary(std::unique_ptr<const Tables> tables);
  std::unique_ptr<const Tables> tables_;
};

}  // namespace polaron

// Splits text into the pieces that byte-pair merges do not cross.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace polaron {

// A regular expression in the dialect that tokenizers share (PCRE2 with Unicode properties, compiled just in time where
// the processor allows). Immutable; one object may be used from several threads.
class PreTokenizer {
 public:
  // Throws Error(Exit::data) with the offset in the pattern where it cannot be compiled; `source` names the file it is
  // from.
  PreTokenizer(const std::string& pattern, const std::string& source);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  // The matches in order and, as pieces of their own, whatever lies between them: together exactly `text`, no piece
  // empty. Bytes that are not UTF-8 never match; they end up between matches. The pieces are views into `text`.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace polaron

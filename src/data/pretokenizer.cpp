#include "data/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>

#include "base/error.h"

namespace polaron {
namespace {

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

// PCRE2 counts U+180E (Mongolian vowel separator, E1 A0 8E) as white space, as Unicode did up to version 6.2; the
// engines that tokenizers are trained with do not. Matching sees U+200B (zero width space, E2 80 8B) in its place: also
// three bytes, also of category Cf, and not white space to anyone, so that all offsets stay as they are.
std::string without_mongolian_separator(std::string_view text) {
  std::string subject(text);
  for (std::size_t at = subject.find("\xe1\xa0\x8e"); at != std::string::npos;
       at = subject.find("\xe1\xa0\x8e", at + 3)) {
    subject.replace(at, 3, "\xe2\x80\x8b");
  }
  return subject;
}

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

std::string describe(int error) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(error, text, sizeof text) < 0) return fmt::format("PCRE2 error {}", error);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct PreTokenizer::Compiled {
  pcre2_code* code = nullptr;
  ~Compiled() { pcre2_code_free(code); }
};

PreTokenizer::PreTokenizer(const std::string& pattern, const std::string& source)
    : compiled_(std::make_unique<Compiled>()) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  compiled_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &offset, nullptr);
  if (compiled_->code == nullptr) {
    throw Error(Exit::data,
                fmt::format("{}: the pre-tokenizer's pattern is not a valid regular expression at offset {}: "
                            "{}.",
                            source, offset, describe(error)));
  }
  pcre2_jit_compile(compiled_->code, PCRE2_JIT_COMPLETE);  // without it, pcre2_match interprets: slower, same result
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
      pcre2_match_data_create_from_pattern(compiled_->code, nullptr));
  if (!data) throw std::bad_alloc();
  const std::string subject = without_mongolian_separator(text);
  const auto match = [&](std::size_t from, std::uint32_t options) {
    return pcre2_match(compiled_->code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), from, options,
                       data.get(), nullptr);
  };

  std::vector<std::string_view> pieces;
  std::size_t done = 0;  // everything before it is in `pieces`
  std::size_t from = 0;
  while (from < text.size()) {
    int result = match(from, 0);
    // A long run of one character can need more stack than compiled matching has; interpreting uses the heap.
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(from, PCRE2_NO_JIT);
    if (result < 0) break;  // no further match, or too hard a one: the rest is one piece
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    const std::size_t begin = bounds[0];
    const std::size_t end = bounds[1];
    if (end <= begin) {  // an empty match splits nothing; go on behind the next character
      for (from = std::max(from, end) + 1; from < text.size() && is_continuation(text[from]);) ++from;
      continue;
    }
    if (begin > done) pieces.push_back(text.substr(done, begin - done));
    pieces.push_back(text.substr(begin, end - begin));
    done = from = end;
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
  return pieces;
}

}  // namespace polaron

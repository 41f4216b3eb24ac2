// Base64 (RFC 4648, section 4, with padding): how JSON carries bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace polaron::base64 {

inline constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// The value of each character; -1 for those outside the alphabet.
inline constexpr auto digits = [] {
  std::array<std::int8_t, 256> values{};
  values.fill(-1);
  for (std::size_t i = 0; i < alphabet.size(); ++i) {
    values[static_cast<unsigned char>(alphabet[i])] = static_cast<std::int8_t>(i);
  }
  return values;
}();

// Nothing where `text` is not canonical base64: another character, a wrong length, stray padding, or bits left over.
inline std::optional<std::string> decode(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  std::string bytes;
  std::uint32_t group = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool padded = i >= text.size() - padding;
    const int digit = padded ? 0 : digits[static_cast<unsigned char>(text[i])];
    if (digit < 0) return std::nullopt;
    group = group << 6 | static_cast<std::uint32_t>(digit);
    if (i % 4 != 3) continue;
    const bool last = i + 1 == text.size();
    const std::size_t count = last ? 3 - padding : 3;
    for (std::size_t j = 0; j < count; ++j) bytes += static_cast<char>(group >> (16 - 8 * j) & 255);
    if (last && padding > 0 && (group & ((1U << (8 * padding)) - 1)) != 0) return std::nullopt;
    group = 0;
  }
  return bytes;
}

}  // namespace polaron::base64

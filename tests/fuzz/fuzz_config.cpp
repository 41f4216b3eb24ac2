// libFuzzer: any text either is refused with Error(Exit::usage) or gives a config that reads back to itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "config/config.h"

namespace {

void expect(bool claim) {
  if (!claim) std::abort();
}

}  // namespace

// The first line, when there is more than one, is an override ("key.path=value"); the rest is the config.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> overrides;
  if (const auto line = text.find('\n'); line != std::string_view::npos) {
    if (line > 0) overrides.emplace_back(text.substr(0, line));
    text.remove_prefix(line + 1);
  }
  polaron::Config config;
  try {
    config = polaron::parse_config(text, "fuzz.json", overrides);
  } catch (const polaron::Error& error) {
    expect(error.code() == polaron::Exit::usage);
    return 0;
  }
  expect(polaron::parse_config(polaron::to_json(config), "again.json") == config);
  return 0;
}

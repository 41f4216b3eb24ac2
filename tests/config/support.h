// A small valid config and ways to vary it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "config/config.h"

namespace polaron {

inline constexpr std::string_view minimal = R"({
  "data": {"train": "data/train_*.bin"},
  "model": {"layers": 2, "width": 64, "heads": 4, "context_length": 32},
  "training": {"steps": 10, "batch": 4}
})";

// The minimal config with `patch` merged over it; null in the patch takes a key away.
inline std::string with(std::string_view patch) {
  nlohmann::json document = nlohmann::json::parse(minimal);
  document.merge_patch(nlohmann::json::parse(patch));
  return document.dump();
}

inline Config parse(std::string_view text, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "configs/a.json", overrides);
}

// Runs `read`, which must throw Error(Exit::usage); the message, or what went wrong instead.
template <class F>
std::string refusal(F&& read) {
  try {
    read();
  } catch (const Error& error) {
    return error.code() == Exit::usage ? error.what() : "wrong exit code for: " + std::string(error.what());
  } catch (const std::exception& error) {
    return "not an Error: " + std::string(error.what());
  }
  return "accepted";
}

inline std::string refusal_of(std::string_view text, const std::vector<std::string>& overrides = {}) {
  return refusal([&] { parse(text, overrides); });
}

// A folder of its own, removed at the end.
class Folder {
 public:
  Folder() : path_(std::filesystem::path(testing::TempDir()) / ("polaron_config_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path write(const std::string& name, std::string_view text) const {
    const auto file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return file;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace polaron

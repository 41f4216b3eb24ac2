// Shard files for the tests, in a folder that goes away with its owner.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <string>
#include <vector>

namespace polaron::testing_data {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::path(::testing::TempDir()) / "polaron_data_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

// The bytes of a shard; Token is std::uint16_t or std::uint32_t and decides the form.
template <typename Token>
std::string shard_bytes(const std::vector<std::uint32_t>& ids) {
  constexpr bool wide = sizeof(Token) == 4;
  std::array<std::int32_t, 256> header{};
  header[0] = wide ? 20240801 : 20240520;
  header[1] = wide ? 7 : 1;
  header[2] = static_cast<std::int32_t>(ids.size());
  const std::vector<Token> tokens(ids.begin(), ids.end());
  return std::string(reinterpret_cast<const char*>(header.data()), sizeof header) +
         std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(Token));
}

template <typename Token = std::uint16_t>
void write_shard(const std::string& path, const std::vector<std::uint32_t>& ids) {
  write_bytes(path, shard_bytes<Token>(ids));
}

// first, first + 1, ..., so that a token tells where it is from.
inline std::vector<std::uint32_t> counting(std::uint32_t first, std::size_t count) {
  std::vector<std::uint32_t> ids(count);
  for (std::size_t i = 0; i < count; ++i) ids[i] = first + static_cast<std::uint32_t>(i);
  return ids;
}

}  // namespace polaron::testing_data

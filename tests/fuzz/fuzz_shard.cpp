// libFuzzer: any bytes as a shard file. It is either refused with an Error or read without touching memory outside it.
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <vector>

#include "base/error.h"
#include "data/shard.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string path = "/dev/shm/polaron_fuzz_shard.bin";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const polaron::Shard shard(path);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(shard.tokens()));
    if (!tokens.empty()) shard.read(0, tokens);
  } catch (const polaron::Error&) {
  }
  return 0;
}

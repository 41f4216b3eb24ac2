// Any bytes given as a safetensors file are either refused with an Error or give tensors that lie inside the file.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/safetensors.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

// Reads every byte that the header promises, so that AddressSanitizer sees a promise that the file does not keep.
void use(const polaron::SafetensorsHeader& header, std::span<const std::byte> file) {
  std::uint64_t covered = 0;
  for (const polaron::TensorInfo& tensor : header.tensors) {
    require(tensor.begin == covered && tensor.end >= tensor.begin);
    covered = tensor.end;
    require(header.data_begin + tensor.end <= file.size());
    const auto bytes = file.subspan(header.data_begin + tensor.begin, tensor.bytes());
    const std::size_t element_size = polaron::safetensors_dtype_size(tensor.dtype);
    require(element_size > 0 && bytes.size() % element_size == 0);
    std::uint64_t elements = 1;
    for (const std::int64_t size : tensor.shape) {
      require(size >= 0);
      elements *= static_cast<std::uint64_t>(size);
    }
    require(elements == bytes.size() / element_size);
    std::vector<float> values(elements);
    polaron::convert_to_f32(tensor.dtype, bytes, values.data(), values.size());
  }
  require(header.data_begin + covered == file.size());
}

void try_to_read(std::span<const std::byte> file) {
  try {
    use(polaron::parse_safetensors(file, "input"), file);
  } catch (const polaron::Error&) {  // the right answer for nearly all inputs
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span input(reinterpret_cast<const std::byte*>(data), size);
  try_to_read(input);
  // A random length in front of the header is hardly ever right: so the input is tried also as a header behind its true
  // length, followed by as much data as its first two bytes say.
  if (size < 2) return 0;
  const std::size_t data_bytes = data[0] | static_cast<std::size_t>(data[1] & 0x0f) << 8;
  const std::uint64_t header_length = size - 2;
  std::vector<std::byte> file(8 + header_length + data_bytes, std::byte{0x3c});
  std::memcpy(file.data(), &header_length, 8);
  if (header_length > 0) std::memcpy(file.data() + 8, data + 2, header_length);
  try_to_read(file);
  return 0;
}

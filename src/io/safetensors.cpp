#include "io/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "io/json_file.h"

namespace polaron {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

std::size_t safetensors_dtype_size(std::string_view dtype) {
  constexpr std::array<std::pair<std::string_view, std::size_t>, 18> sizes{{
      {"F64", 8},
      {"F32", 4},
      {"F16", 2},
      {"BF16", 2},
      {"F8_E4M3", 1},
      {"F8_E5M2", 1},
      {"I64", 8},
      {"I32", 4},
      {"I16", 2},
      {"I8", 1},
      {"U64", 8},
      {"U32", 4},
      {"U16", 2},
      {"U8", 1},
      {"BOOL", 1},
      {"F8_E8M0", 1},
      {"F8_E4M3FNUZ", 1},
      {"F8_E5M2FNUZ", 1},
  }};
  const auto found =
      std::find_if(sizes.begin(), sizes.end(), [dtype](const auto& entry) { return entry.first == dtype; });
  return found == sizes.end() ? 0 : found->second;
}

namespace {

using nlohmann::json;

constexpr std::uint64_t longest_header = 100'000'000;  // the limit of the reference implementation

// Turns one file's header into a SafetensorsHeader; every refusal goes through `refuse`.
class HeaderParser {
 public:
  explicit HeaderParser(const std::string& path) : path_(path) {}

  SafetensorsHeader parse(std::span<const std::byte> file) {
    const std::string_view text = header_text(file);
    SafetensorsHeader header;
    header.data_begin = 8 + text.size();
    const json object = parse_json(text, fmt::format("the header of '{}' (bytes 8 to {})", path_, header.data_begin));
    for (const auto& [name, value] : object.items()) {
      if (name == "__metadata__") {
        header.metadata = metadata(value);
      } else {
        header.tensors.push_back(tensor(name, value));
      }
    }
    check_cover(header.tensors, file.size() - header.data_begin);
    return header;
  }

 private:
  [[noreturn]] void refuse(const std::string& problem) const {
    throw Error(Exit::data,
                fmt::format("'{}' is not a sound safetensors file: {}. It is damaged, incomplete or of another "
                            "format: fetch or write it again.",
                            path_, problem));
  }
  [[noreturn]] void refuse(std::string_view tensor, const std::string& problem) const {
    refuse(fmt::format("tensor {}: {}", in_quotes(tensor), problem));
  }

  std::string_view header_text(std::span<const std::byte> file) const {
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    if (text.starts_with("version https://git-lfs")) {
      throw Error(Exit::data,
                  fmt::format("'{}' is a Git LFS pointer, not the file itself. Fetch the file with 'git lfs "
                              "pull'.",
                              path_));
    }
    if (file.size() < 8) refuse(fmt::format("it has {} bytes, fewer than the 8 of the header's length", file.size()));
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    if (length > file.size() - 8) {
      refuse(fmt::format("bytes 0 to 8 give the header's length as {}, but only {} bytes follow", length,
                         file.size() - 8));
    }
    if (length > longest_header) {
      refuse(fmt::format("its header of {} bytes is longer than the {} allowed", length, longest_header));
    }
    if (length == 0 || text[8] != '{') refuse("the header at byte 8 does not start with '{'");
    return text.substr(8, static_cast<std::size_t>(length));
  }

  std::map<std::string, std::string> metadata(const json& value) const {
    std::map<std::string, std::string> result;
    if (!value.is_object()) refuse("\"__metadata__\" is not an object");
    for (const auto& [key, entry] : value.items()) {
      if (!entry.is_string()) refuse(fmt::format("\"__metadata__\": the value of {} is not a string", in_quotes(key)));
      result[key] = entry.get<std::string>();
    }
    return result;
  }

  TensorInfo tensor(const std::string& name, const json& value) const {
    if (!value.is_object()) refuse(name, "its header entry is not an object");
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!value.contains(field)) refuse(name, fmt::format("\"{}\" is missing", field));
    }
    if (value.size() != 3) refuse(name, "it has fields other than \"dtype\", \"shape\" and \"data_offsets\"");

    TensorInfo info;
    info.name = name;
    if (!value["dtype"].is_string()) refuse(name, "\"dtype\" is not a string");
    info.dtype = value["dtype"].get<std::string>();
    const std::uint64_t element_size = safetensors_dtype_size(info.dtype);
    if (element_size == 0) refuse(name, fmt::format("the dtype {} is not known", in_quotes(info.dtype)));

    if (!value["shape"].is_array()) refuse(name, "\"shape\" is not an array");
    std::uint64_t needed = element_size;
    for (const json& size : value["shape"]) {
      if (!size.is_number_unsigned()) refuse(name, "\"shape\" holds something else than whole numbers from 0 up");
      const auto number = size.get<std::uint64_t>();
      if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) ||
          __builtin_mul_overflow(needed, number, &needed)) {
        refuse(name, "the size that its \"shape\" gives is too large");
      }
      info.shape.push_back(static_cast<std::int64_t>(number));
    }

    const json& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      refuse(name, "\"data_offsets\" is not an array of two whole numbers from 0 up");
    }
    info.begin = offsets[0].get<std::uint64_t>();
    info.end = offsets[1].get<std::uint64_t>();
    if (info.begin > info.end) refuse(name, fmt::format("data_offsets [{}, {}] run backwards", info.begin, info.end));
    if (info.bytes() != needed) {
      refuse(name, fmt::format("data_offsets [{}, {}] hold {} bytes, but shape [{}] of {} needs {}", info.begin,
                               info.end, info.bytes(), fmt::join(info.shape, ", "), info.dtype, needed));
    }
    return info;
  }

  // The format demands that the tensors tile the data section. Sorts them into that order.
  void check_cover(std::vector<TensorInfo>& tensors, std::uint64_t data_bytes) const {
    std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    std::uint64_t covered = 0;
    for (const TensorInfo& tensor : tensors) {
      if (tensor.end > data_bytes) {
        refuse(tensor.name, fmt::format("data_offsets [{}, {}] reach beyond the data section of {} bytes", tensor.begin,
                                        tensor.end, data_bytes));
      }
      if (tensor.begin != covered) {
        refuse(
            tensor.name,
            fmt::format("data_offsets [{}, {}] {} byte {}, where the tensor before it ends", tensor.begin, tensor.end,
                        tensor.begin < covered ? "overlap what lies before" : "leave a hole from", covered));
      }
      covered = tensor.end;
    }
    if (covered != data_bytes) {
      refuse(fmt::format("{} bytes follow the last tensor, which ends at byte {} of the data section",
                         data_bytes - covered, covered));
    }
  }

  const std::string& path_;
};

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t fraction = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);          // infinity, NaN
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);  // bias 15 -> 127
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal or zero: exact in float
  return sign != 0 ? -magnitude : magnitude;
}

template <typename Stored, typename Convert>
void convert_each(std::span<const std::byte> bytes, float* out, std::size_t n, Convert convert) {
  for (std::size_t i = 0; i < n; ++i) {
    Stored value;
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    out[i] = convert(value);
  }
}

bool converts_to_f32(std::string_view dtype) {
  return dtype == "F32" || dtype == "BF16" || dtype == "F16" || dtype == "F64";
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& path) {
  return HeaderParser(path).parse(file);
}

bool convert_to_f32(std::string_view dtype, std::span<const std::byte> bytes, float* out, std::size_t n) {
  if (!converts_to_f32(dtype)) return false;
  if (bytes.size() / safetensors_dtype_size(dtype) != n || bytes.size() % safetensors_dtype_size(dtype) != 0) {
    throw std::logic_error("convert_to_f32: the number of bytes is not that of the elements");
  }
  if (n == 0) return true;
  if (dtype == "F32") {
    std::memcpy(out, bytes.data(), bytes.size());
  } else if (dtype == "BF16") {
    convert_each<std::uint16_t>(bytes, out, n, [](std::uint16_t value) {
      return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
    });
  } else if (dtype == "F16") {
    convert_each<std::uint16_t>(bytes, out, n, half_to_float);
  } else {
    convert_each<double>(bytes, out, n, [](double value) { return static_cast<float>(value); });
  }
  return true;
}

void SafetensorsReader::Unmap::operator()(const std::byte* address) const {
  ::munmap(const_cast<std::byte*>(address), bytes);
}

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path)
    : file_(File::open_for_reading(path)), mapping_(nullptr, Unmap{0}) {
  const auto size = static_cast<std::size_t>(file_.size());
  if (size > 0) {  // an empty file cannot be mapped
    void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file_.descriptor(), 0);
    if (address == MAP_FAILED) throw_file_error("map", path, errno);
    mapping_ = {static_cast<const std::byte*>(address), Unmap{size}};
  }
  header_ = parse_safetensors({mapping_.get(), size}, path.string());
  for (std::size_t i = 0; i < header_.tensors.size(); ++i) index_[header_.tensors[i].name] = i;
}

std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> result;
  for (const TensorInfo& tensor : header_.tensors) result.push_back(tensor.name);
  return result;
}

const TensorInfo* SafetensorsReader::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

const TensorInfo& SafetensorsReader::at(std::string_view name) const {
  if (const TensorInfo* tensor = find(name)) return *tensor;
  throw Error(Exit::data, fmt::format("'{}' holds no tensor {}. It belongs to another model, or is incomplete.",
                                      path().string(), in_quotes(name)));
}

std::span<const std::byte> SafetensorsReader::data(std::string_view name) const {
  const TensorInfo& tensor = at(name);
  return {mapping_.get() + header_.data_begin + tensor.begin, static_cast<std::size_t>(tensor.bytes())};
}

void SafetensorsReader::read(std::string_view name, std::span<std::byte> out) const {
  const TensorInfo& tensor = at(name);
  if (tensor.bytes() != out.size()) {
    throw Error(Exit::data, fmt::format("'{}': tensor {} ({} [{}]) has {} bytes where {} are expected. It belongs to "
                                        "another model.",
                                        path().string(), in_quotes(name), tensor.dtype, fmt::join(tensor.shape, ", "),
                                        tensor.bytes(), out.size()));
  }
  file_.read_at(header_.data_begin + tensor.begin, out);
}

void SafetensorsReader::read_f32(std::string_view name, float* out, std::size_t n) const {
  const TensorInfo& tensor = at(name);
  const std::size_t element_size = safetensors_dtype_size(tensor.dtype);
  if (!converts_to_f32(tensor.dtype) || tensor.bytes() / element_size != n) {
    throw Error(Exit::data,
                fmt::format("'{}': tensor {} is {} [{}] where {} numbers of F32, BF16, F16 or F64 are "
                            "expected. It belongs to another model.",
                            path().string(), in_quotes(name), tensor.dtype, fmt::join(tensor.shape, ", "), n));
  }
  const std::uint64_t begin = header_.data_begin + tensor.begin;
  if (tensor.dtype == "F32") return file_.read_at(begin, std::as_writable_bytes(std::span(out, n)));
  std::vector<std::byte> buffer(std::min<std::size_t>(n, 1 << 18) * element_size);
  for (std::size_t done = 0; done < n;) {
    const std::size_t count = std::min(n - done, buffer.size() / element_size);
    const auto piece = std::span(buffer).first(count * element_size);
    file_.read_at(begin + done * element_size, piece);
    convert_to_f32(tensor.dtype, piece, out + done, count);
    done += count;
  }
}

}  // namespace polaron

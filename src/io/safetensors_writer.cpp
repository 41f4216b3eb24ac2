// The writing half of safetensors.h.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "io/safetensors.h"

namespace polaron {
namespace {

constexpr std::size_t piece_bytes = std::size_t{4} << 20;  // a multiple of every element size

// Orders the tensors, sets their offsets and returns the number of bytes of the data section.
std::uint64_t lay_out(std::vector<TensorInfo>& tensors) {
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : tensors) {
    if (safetensors_dtype_size(tensor.dtype) == 0) {
      throw std::logic_error("SafetensorsWriter: unknown dtype " + tensor.dtype + " of " + tensor.name);
    }
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
      throw std::logic_error("SafetensorsWriter: the name " + tensor.name + " is taken");
    }
  }
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return safetensors_dtype_size(a.dtype) > safetensors_dtype_size(b.dtype);
  });
  std::uint64_t offset = 0;
  for (TensorInfo& tensor : tensors) {
    std::uint64_t bytes = safetensors_dtype_size(tensor.dtype);
    bool sound = true;
    for (const std::int64_t size : tensor.shape) {
      sound = sound && size >= 0 && !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes);
    }
    tensor.begin = offset;
    if (!sound || __builtin_add_overflow(offset, bytes, &offset)) {
      throw std::logic_error("SafetensorsWriter: impossible shape of " + tensor.name);
    }
    tensor.end = offset;
  }
  return offset;
}

std::string header_of(const std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  for (const TensorInfo& tensor : tensors) {
    json[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {tensor.begin, tensor.end}}};
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data starts at a multiple of 8
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(-1, path), tensors_(std::move(tensors)) {
  const std::uint64_t data_bytes = lay_out(tensors_);
  const std::string header = header_of(tensors_, metadata);
  file_bytes_ = header.size() + data_bytes;
  file_ = File::open_for_writing(path);
  append(std::as_bytes(std::span(header)));
}

const TensorInfo& SafetensorsWriter::next(std::string_view name) {
  if (written_ == tensors_.size() || tensors_[written_].name != name) {
    throw std::logic_error("SafetensorsWriter: " + std::string(name) + " written where " +
                           (written_ == tensors_.size() ? "nothing more" : tensors_[written_].name) + " is due");
  }
  return tensors_[written_++];
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  const std::uint64_t rest = file_bytes_ - written_bytes_ - bytes.size();
  file_.write_all(bytes, rest);
  checksum_.update(bytes);
  written_bytes_ += bytes.size();
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  const TensorInfo& tensor = next(name);
  if (bytes.size() != tensor.bytes()) {
    throw std::logic_error("SafetensorsWriter: wrong number of bytes for " + tensor.name);
  }
  append(bytes);
}

void SafetensorsWriter::write(std::string_view name, const Fill& fill) {
  const TensorInfo& tensor = next(name);
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min<std::uint64_t>(tensor.bytes(), piece_bytes)));
  for (std::uint64_t offset = 0; offset < tensor.bytes(); offset += piece.size()) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), tensor.bytes() - offset));
    fill(offset, std::span(piece).first(count));
    append(std::span(piece).first(count));
  }
}

FileDigest SafetensorsWriter::finish() {
  if (written_ != tensors_.size() || written_bytes_ != file_bytes_) {
    throw std::logic_error("SafetensorsWriter::finish before all tensors of " + file_.path().string() +
                           " were written");
  }
  file_.close();
  return {written_bytes_, checksum_.value()};
}

}  // namespace polaron

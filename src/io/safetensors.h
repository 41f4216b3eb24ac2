// The safetensors format (https://huggingface.co/docs/safetensors), read and written:
//
//   8 bytes    N, the header's length, little-endian
//   N bytes    a JSON object, padded with spaces: tensor name -> {"dtype", "shape", "data_offsets": [begin, end]}, and
//              optionally "__metadata__" -> an object of strings
//   the rest   the data: row-major, little-endian, every tensor once, without holes
//
// A file is input from anywhere: whatever is wrong with it is an Error(Exit::data) that names the file, the tensor and
// the offset. Names that a file lacks are Errors too, since a checkpoint of another architecture lacks them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/checksum.h"
#include "io/file.h"

namespace polaron {

struct TensorInfo {
  std::string name;
  std::string dtype;                 // "F32", "BF16", "F16", "F64", "I8" to "I64", "U8" to "U64", "BOOL", "F8_..."
  std::vector<std::int64_t> shape;   // outermost first; [] is a scalar; a size of 0 is allowed
  std::uint64_t begin = 0, end = 0;  // bytes, from the start of the data section

  std::uint64_t bytes() const { return end - begin; }
};

// Bytes of one element; 0 for a dtype that is not known.
std::size_t safetensors_dtype_size(std::string_view dtype);

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  // byte of the file at which the data section starts
};

// Checks a whole file held in memory; `path` is for messages. Refused: a header longer than the file or than 100 MB,
// one that does not start with '{' or is not JSON, unknown dtypes and fields, sizes that overflow, duplicate names, and
// data ranges that do not fit the shape or do not cover the data section exactly once.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& path);

// Converts n elements of F32, BF16, F16 or F64 (rounded to nearest) at any alignment to float. False, and nothing
// written, for other dtypes. std::logic_error where `bytes` are not those of n elements.
bool convert_to_f32(std::string_view dtype, std::span<const std::byte> bytes, float* out, std::size_t n);

// One file, open for reading. The const functions may be called from several threads.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }  // in the order of their data
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  std::vector<std::string> names() const;               // in the order of their data
  const TensorInfo* find(std::string_view name) const;  // nullptr where there is none; lives as long as the reader
  const TensorInfo& at(std::string_view name) const;    // an Error where there is none

  // The tensor's bytes, mapped from the file (valid while the reader lives). Their address need not be a multiple of
  // the element's size: copy before use as numbers. As with any mapping, a file that another program truncates in the
  // meantime kills the process (SIGBUS); the two functions below turn that into an Error.
  std::span<const std::byte> data(std::string_view name) const;
  // Copies the tensor's bytes; an Error unless out.size() is their number.
  void read(std::string_view name, std::span<std::byte> out) const;
  // Copies n elements as float; an Error unless the tensor has n elements of F32, BF16, F16 or F64.
  void read_f32(std::string_view name, float* out, std::size_t n) const;

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(const std::byte* address) const;
  };

  File file_;
  std::unique_ptr<const std::byte, Unmap> mapping_;  // of the whole file
  SafetensorsHeader header_;
  std::map<std::string, std::size_t, std::less<>> index_;  // name -> place in header_.tensors
};

// A checkpoint in a folder: `model.safetensors`, or `model.safetensors.index.json` and the files (shards) that its
// "weight_map" names, as Hugging Face writes large models. Only the tensors that the map names are seen.
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(const std::filesystem::path& folder);

  const std::filesystem::path& path() const { return folder_; }
  std::vector<std::string> names() const;  // sorted
  const TensorInfo* find(std::string_view name) const;
  const TensorInfo& at(std::string_view name) const;
  // The file that holds the tensor; its functions data, read, read_f32 do the reading.
  const SafetensorsReader& file_of(std::string_view name) const;
  std::span<const std::byte> data(std::string_view name) const { return file_of(name).data(name); }
  void read(std::string_view name, std::span<std::byte> out) const { file_of(name).read(name, out); }
  void read_f32(std::string_view name, float* out, std::size_t n) const { file_of(name).read_f32(name, out, n); }

 private:
  std::filesystem::path folder_;
  std::vector<SafetensorsReader> files_;
  std::map<std::string, std::size_t, std::less<>> index_;  // name -> place in files_
};

// Writes one file, tensor by tensor, holding at most 4 MiB of it. Use it inside an AtomicDirectory: the file is not
// complete before finish().
//
//   SafetensorsWriter writer(path, {{"wte.weight", "F32", {64, 8}}, ...}, {{"format", "pt"}});
//   for (const TensorInfo& tensor : writer.tensors()) writer.write(tensor.name, ...);
//   manifest["model.safetensors"] = writer.finish();
//
// transformers refuses a file without the metadata {"format": "pt"}. Misuse (a name not in the list or out of order,
// wrong number of bytes, a duplicate) is a std::logic_error; a failed write is an Error that names the file, the bytes
// still needed and the bytes free.
class SafetensorsWriter {
 public:
  // `begin` and `end` of the tensors are ignored. The data is laid out by falling element size, else in the order
  // given: so every tensor starts at a multiple of its element's size, which readers count on.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata = {});

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the order in which to write them
  std::uint64_t file_bytes() const { return file_bytes_; }             // of the finished file

  // Writes the next tensor, all of it.
  void write(std::string_view name, std::span<const std::byte> bytes);

  // The same in pieces: fill(offset, piece) is called with rising byte offsets into the tensor until all is written,
  // and sets every byte of the piece. Pieces are of at most 4 MiB and of whole elements, aligned for any dtype.
  using Fill = std::function<void(std::uint64_t offset, std::span<std::byte> piece)>;
  void write(std::string_view name, const Fill& fill);

  // Closes the file. std::logic_error unless everything was written.
  FileDigest finish();

 private:
  const TensorInfo& next(std::string_view name);
  void append(std::span<const std::byte> bytes);

  File file_;
  std::vector<TensorInfo> tensors_;
  std::size_t written_ = 0;  // tensors
  std::uint64_t file_bytes_ = 0;
  std::uint64_t written_bytes_ = 0;
  Checksum checksum_;
};

}  // namespace polaron

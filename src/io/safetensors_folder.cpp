// The checkpoint folder of safetensors.h: one file, or an index and its shards.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/json_file.h"
#include "io/safetensors.h"

namespace polaron {
namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse_index(const fs::path& index, const std::string& problem) {
  throw Error(Exit::data, fmt::format("'{}' is not a sound index: {}. Fetch or write the checkpoint again.",
                                      index.string(), problem));
}

[[noreturn]] void refuse_folder(const fs::path& folder) {
  std::error_code ignored;
  std::string remedy = "Give the folder of a checkpoint.";
  if (!fs::exists(folder, ignored)) {
    remedy = "The folder does not exist.";
  } else if (fs::exists(folder / "pytorch_model.bin", ignored)) {
    remedy =
        "It holds pytorch_model.bin, which polaron does not read: load the model with transformers and save it with "
        "save_pretrained(folder, safe_serialization=True).";
  }
  throw Error(Exit::data, fmt::format("'{}' holds neither model.safetensors nor model.safetensors.index.json. {}",
                                      folder.string(), remedy));
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(const fs::path& folder) : folder_(folder) {
  std::error_code failure;
  if (const fs::path single = folder / "model.safetensors"; fs::exists(single, failure) || failure) {
    files_.emplace_back(single);
    for (const TensorInfo& tensor : files_.front().tensors()) index_[tensor.name] = 0;
    return;
  }
  const fs::path index = folder / "model.safetensors.index.json";
  if (!fs::exists(index, failure) && !failure) refuse_folder(folder);

  const nlohmann::json json = read_json_file(index);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    refuse_index(index, "it has no object \"weight_map\"");
  }
  std::map<std::string, std::size_t> opened;  // file name -> place in files_
  for (const auto& [name, value] : json["weight_map"].items()) {
    if (!value.is_string()) refuse_index(index, fmt::format("the file of tensor {} is not a string", in_quotes(name)));
    const auto& file_name = value.get_ref<const std::string&>();
    if (file_name.empty() || file_name == "." || file_name == ".." ||
        file_name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
      refuse_index(index, fmt::format("the file {} of tensor {} is not the name of a file in the same folder",
                                      in_quotes(file_name), in_quotes(name)));
    }
    const auto [entry, is_new] = opened.try_emplace(file_name, files_.size());
    if (is_new) files_.emplace_back(folder / file_name);
    if (files_[entry->second].find(name) == nullptr) {
      refuse_index(
          index, fmt::format("tensor {} is not in {}, where it is said to be", in_quotes(name), in_quotes(file_name)));
    }
    index_[name] = entry->second;
  }
}

std::vector<std::string> SafetensorsFolder::names() const {
  std::vector<std::string> result;
  for (const auto& [name, file] : index_) result.push_back(name);
  return result;
}

const TensorInfo* SafetensorsFolder::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : files_[found->second].find(name);
}

const TensorInfo& SafetensorsFolder::at(std::string_view name) const { return file_of(name).at(name); }

const SafetensorsReader& SafetensorsFolder::file_of(std::string_view name) const {
  const auto found = index_.find(name);
  if (found != index_.end()) return files_[found->second];
  throw Error(Exit::data, fmt::format("the checkpoint '{}' holds no tensor {}. It belongs to another model, or is "
                                      "incomplete.",
                                      folder_.string(), in_quotes(name)));
}

}  // namespace polaron

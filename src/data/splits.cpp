#include "data/splits.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "data/shard.h"

namespace polaron {
namespace {

std::filesystem::path canonical(const std::string& path) {
  std::error_code error;
  const auto result = std::filesystem::weakly_canonical(path, error);
  return error ? std::filesystem::path(path) : result;
}

}  // namespace

void check_splits(const std::string& training, const std::string& validation, const Vocabulary* vocabulary) {
  std::map<std::filesystem::path, std::string> trained_on;
  for (const std::string& path : expand_pattern(training)) trained_on[canonical(path)] = path;
  const std::vector<std::string> validated_on = expand_pattern(validation);
  for (const std::string& path : validated_on) {
    const auto same = trained_on.find(canonical(path));
    if (same == trained_on.end()) continue;
    throw Error(Exit::usage, fmt::format("{} would be trained on and validated on: data.train '{}' and data.validation "
                                         "'{}' both match it. Give patterns that share no file, e.g. "
                                         "'data/train_*.bin' and 'data/validation_*.bin'.",
                                         same->second, training, validation));
  }
  if (vocabulary == nullptr) return;
  const std::optional<Vocabulary> beside = Vocabulary::find_beside(validated_on.front());
  if (beside && !beside->same_ids(*vocabulary)) {
    throw Error(Exit::usage,
                fmt::format("data.validation '{}' was made with the vocabulary \"{}\" ({} ids), and the training data "
                            "with \"{}\" ({} ids): token ids mean something else there. Prepare both with the same "
                            "tokenizer.",
                            validation, beside->name(), beside->size(), vocabulary->name(), vocabulary->size()));
  }
}

}  // namespace polaron

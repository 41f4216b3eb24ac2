#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/error.h"
#include "commands/commands.h"
#include "data/vocabulary.h"
#include "train/format.h"
#include "train/generate.h"
#include "train/inference.h"

namespace polaron {
namespace {

std::vector<std::int32_t> prompt_ids(const GenerateCommand& command, const std::optional<Vocabulary>& vocabulary,
                                     std::int64_t vocabulary_size) {
  std::vector<std::int32_t> ids = command.prompt_ids;
  if (ids.empty() && !command.prompt.empty()) {
    if (!vocabulary) {
      throw Error(Exit::usage,
                  "the checkpoint carries no vocabulary.json: give the prompt as token ids with --prompt-ids.");
    }
    ids = vocabulary->encode(command.prompt);
  }
  if (ids.empty()) {
    if (!vocabulary || vocabulary->separator_token() < 0) {
      throw Error(Exit::usage, "the checkpoint's vocabulary has no document separator to start from: give a --prompt.");
    }
    ids.push_back(vocabulary->separator_token());
  }
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocabulary_size) {
      throw Error(Exit::usage,
                  fmt::format("--prompt-ids: {} is no token id; they run from 0 to {}.", id, vocabulary_size - 1));
    }
  }
  return ids;
}

}  // namespace

Exit run_generate(const GenerateCommand& command) {
  const CheckpointReader checkpoint(command.checkpoint);
  std::optional<Vocabulary> vocabulary;
  if (!checkpoint.vocabulary().empty()) {
    vocabulary = Vocabulary::parse(checkpoint.vocabulary(), (checkpoint.folder() / "vocabulary.json").string());
  }
  const std::vector<std::int32_t> prompt = prompt_ids(command, vocabulary, checkpoint.model().vocabulary);
  const std::int64_t context = checkpoint.model().context_length;
  InferenceModel model(checkpoint, command.device, command.threads, 1, context);

  // Text comes as it is made. A character may take several tokens, so what is printed is the growth of the whole text.
  // A terminal gets none of a model's bytes that it could take for commands.
  const auto text_of = [&](std::span<const std::int32_t> ids) {
    if (vocabulary) return vocabulary->decode(ids);
    return fmt::format("{}", fmt::join(ids, " "));
  };
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  std::size_t shown = 0;  // bytes
  const auto show = [&](const std::string& text, std::size_t end) {
    if (end <= shown) return;
    const std::string grown = text.substr(shown, end - shown);
    const std::string part = terminal ? printable(grown) : grown;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
    shown = end;
  };
  std::vector<std::int32_t> generated;
  std::fputs(command.prompt.c_str(), stdout);
  SamplingOptions options;
  options.tokens = command.tokens;
  options.temperature = command.temperature;
  options.top_k = command.top_k;
  options.seed = command.seed;
  generate(model.transformer(), model.stream(), model.uploader(), context, prompt, options, [&](std::int32_t id) {
    generated.push_back(id);
    const std::string text = text_of(generated);
    show(text, complete_characters(text));
    return true;
  });
  const std::string text = text_of(generated);
  show(text, text.size());
  std::fputs("\n", stdout);
  return Exit::done;
}

}  // namespace polaron

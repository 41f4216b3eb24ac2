#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "commands/commands.h"
#include "data/vocabulary.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/inference.h"

namespace polaron {

Exit run_eval(const EvalCommand& command) {
  const CheckpointReader checkpoint(command.checkpoint);
  const TransformerConfig& config = checkpoint.model();
  const std::int64_t length =
      command.sequence_length > 0 ? command.sequence_length : trained_sequence_length(checkpoint);
  if (config.positions == Positions::learned && length > config.context_length) {
    throw Error(Exit::usage, fmt::format("--sequence-length {} is longer than the model's context of {} tokens.",
                                         length, config.context_length));
  }
  ValidationOptions options;
  options.pattern = command.data;
  options.sequence_length = length;
  options.micro_batch = command.micro_batch;
  options.tokens = command.tokens;
  options.vocabulary_size = config.vocabulary;
  options.document_mask = config.document_mask;
  if (!checkpoint.vocabulary().empty()) {
    options.separator_token = Vocabulary::parse(checkpoint.vocabulary(), "vocabulary.json").separator_token();
  }
  // No more windows at a time than there are.
  const std::int64_t tokens = ValidationReader(options).tokens();
  options.micro_batch = std::min(command.micro_batch, (tokens + length - 1) / length);
  ValidationReader reader(options);

  InferenceModel model(checkpoint, command.device, command.threads, options.micro_batch, length);
  const auto communicator = make_single_process_communicator();
  const Evaluation result =
      *evaluate(model.transformer(), model.backend(), model.stream(), *communicator, model.uploader(), reader);
  if (command.json) {
    const nlohmann::json j = {{"loss", result.loss},       {"perplexity", result.perplexity},
                              {"tokens", result.tokens},   {"sequence_length", length},
                              {"seconds", result.seconds}, {"checkpoint", checkpoint.folder()}};
    fmt::print("{}\n", j.dump());
  } else {
    fmt::print("loss {:.6f}   perplexity {:.4f}   over {} tokens in windows of {} ({:.1f} s)\n", result.loss,
               result.perplexity, result.tokens, length, result.seconds);
  }
  return Exit::done;
}

}  // namespace polaron

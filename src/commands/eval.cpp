#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "commands/commands.h"
#include "data/vocabulary.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/inference.h"

namespace polaron {
namespace {

// The pattern and the tokens to evaluate: what the command says, else what the checkpoint's run was validated on, which
// a person is told.
TrainedValidation evaluated(const EvalCommand& command, const CheckpointReader& checkpoint) {
  if (command.data) return {*command.data, command.tokens.value_or(0)};
  const std::optional<TrainedValidation> trained = trained_validation(checkpoint);
  if (!trained) {
    throw Error(Exit::usage, fmt::format("{} does not say what to evaluate it on: {}. Give --data GLOB.",
                                         checkpoint.folder().string(),
                                         checkpoint.resumable() ? "its run had no data.validation"
                                                                : "it is a model without the config of a run"));
  }
  const bool tokens_too = !command.tokens && trained->tokens > 0;
  log::info(fmt::format("Evaluating on the run's data.validation, {}{}.", trained->pattern,
                        tokens_too ? fmt::format(", and its validation.tokens, {}", trained->tokens) : ""));
  return {trained->pattern, command.tokens.value_or(trained->tokens)};
}

}  // namespace

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
  const TrainedValidation split = evaluated(command, checkpoint);
  options.pattern = split.pattern;
  options.sequence_length = length;
  options.micro_batch = command.micro_batch;
  options.tokens = split.tokens;
  options.vocabulary_size = config.vocabulary;
  options.document_mask = config.document_mask;
  if (!checkpoint.vocabulary().empty()) {
    options.separator_token = Vocabulary::parse(checkpoint.vocabulary(), "vocabulary.json").separator_token();
  }
  // No more windows at a time than there are.
  const std::int64_t tokens = ValidationReader(options).tokens();
  options.micro_batch = std::min(command.micro_batch, (tokens + length - 1) / length);
  ValidationReader reader(options);
  const std::string note = reader.shortened_note(command.tokens ? "--tokens" : "validation.tokens");
  if (!note.empty()) log::warn(note);

  InferenceModel model(checkpoint, command.device, command.threads, options.micro_batch, length);
  const auto communicator = make_single_process_communicator();
  const Evaluation result =
      *evaluate(model.transformer(), model.backend(), model.stream(), *communicator, model.uploader(), reader);
  if (command.json) {
    const nlohmann::json j = {{"loss", result.loss},       {"perplexity", result.perplexity},
                              {"tokens", result.tokens},   {"sequence_length", length},
                              {"seconds", result.seconds}, {"checkpoint", checkpoint.folder()},
                              {"data", split.pattern}};
    fmt::print("{}\n", j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("loss {:.6f}   perplexity {:.4f}   over {} tokens in windows of {} ({:.1f} s)\n", result.loss,
               result.perplexity, result.tokens, length, result.seconds);
  }
  return Exit::done;
}

}  // namespace polaron

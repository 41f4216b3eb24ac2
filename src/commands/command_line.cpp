// The only file that includes CLI11.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>

#include "base/log.h"
#include "commands/commands.h"
#include "config/words.h"

namespace polaron {
namespace {

using Action = std::function<Exit()>;

// CLI11's own checks of ranges print all 309 digits of the largest double.
CLI::Validator at_least(std::int64_t least) {
  return CLI::Validator(
      [least](const std::string& text) -> std::string {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        const bool fine = !text.empty() && *end == '\0' && value >= static_cast<double>(least);
        return fine ? "" : "'" + text + "' is not a number of at least " + std::to_string(least);
      },
      "");
}

// A JSON string, so that --set does not take a path for a number.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

void add_overrides(CLI::App& app, std::vector<std::string>& overrides) {
  app.add_option("--set", overrides,
                 "Put a value over the config's, e.g. --set optimizer.matrices.rank=256. The value is JSON; what is "
                 "not JSON is "
                 "taken as a string. May be given several times.")
      ->type_name("KEY.PATH=VALUE")
      ->allow_extra_args(false);
}

void add_device(CLI::App& app, std::string& device, int& threads) {
  app.add_option("--device", device, "Where to compute: auto takes a GPU when there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", threads, "CPU threads; 0 is one a core")->check(at_least(0))->capture_default_str();
}

// The device is part of a run's config: the two flags are short for --set.
void add_device_overrides(CLI::App& app, std::vector<std::string>& overrides) {
  app.add_option_function<std::string>(
         "--device", [&overrides](const std::string& value) { overrides.push_back("device=" + value); },
         "Where to compute: auto takes a GPU when there is one (short for --set device=...)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option_function<int>(
         "--threads", [&overrides](int value) { overrides.push_back("threads=" + std::to_string(value)); },
         "CPU threads; 0 is one a core (short for --set threads=...)")
      ->check(at_least(0));
}

void add_train(CLI::App& app, TrainCommand& command, Action& action) {
  CLI::App& train = *app.add_subcommand("train", "Train a model as a JSON config says");
  train.add_option("config", command.config, "The run's config (docs/config.md lists every key)")
      ->required()
      ->type_name("CONFIG");
  add_overrides(train, command.overrides);
  CLI::Option* resume =
      train.add_option("--resume", command.resume_from,
                       "Go on from the newest checkpoint of the run's own directory, or from the checkpoint or "
                       "run directory DIR. Same config and process count: to the bit as if never stopped.");
  resume->expected(0, 1)->type_name("[DIR]");
  train.add_flag(
      "--auto-resume", command.auto_resume,
      "For jobs that are started again by themselves: go on from the run's own newest checkpoint where it has "
      "one, and otherwise begin as the other options say, anew where it was stopped before its first one.");
  train
      .add_option_function<std::string>(
          "--init-from",
          [&command](const std::string& value) { command.overrides.push_back("init_from=" + quoted(value)); },
          "Start a new run from the weights of a polaron or Hugging Face checkpoint (GPT-2 or LLaMA), with a fresh "
          "optimizer")
      ->type_name("DIR");
  add_device_overrides(train, command.overrides);
  train
      .add_option(
          "--max-time", command.max_time,
          "Stop after this much time as on SIGTERM: checkpoint the last complete step and exit with 6. E.g. 90s, 10m, "
          "1h30m.")
      ->type_name("DURATION");
  train.footer(
      "Examples:\n"
      "  polaron train configs/quickstart.json\n"
      "  polaron train configs/gpt2-124m.json --set optimizer.matrices.rank=256 --set output=runs/r256\n"
      "  polaron train configs/gpt2-124m.json --resume\n"
      "Signals: SIGINT and SIGTERM checkpoint and stop (exit code 6), SIGUSR1 checkpoints and goes on, a second "
      "SIGINT\n"
      "stops at once. The run directory gets metrics.jsonl, config.json and checkpoints/ that transformers loads.");
  train.callback([&command, &action, resume] {
    command.resume = resume->count() > 0;
    action = [&command] { return run_train(command); };
  });
}

void add_eval(CLI::App& app, EvalCommand& command, Action& action) {
  CLI::App& eval = *app.add_subcommand("eval", "Validation loss and perplexity of a checkpoint");
  eval.add_option("checkpoint", command.checkpoint, "A checkpoint, a run directory, or a model folder of transformers'")
      ->required()
      ->type_name("CHECKPOINT");
  eval.add_option("--data", command.data,
                  "Glob of token shards, relative to the current directory; default: data.validation of the run that "
                  "made the checkpoint. A model folder without its run needs it.")
      ->type_name("GLOB");
  eval.add_option("--tokens", command.tokens,
                  "Evaluate the first so many targets, or all where there are fewer; 0 is all. Default: all of --data; "
                  "without --data, validation.tokens of the run.")
      ->check(at_least(0));
  eval.add_option("--sequence-length", command.sequence_length, "Tokens a window; 0 is what the model was trained with")
      ->check(at_least(0))
      ->capture_default_str();
  eval.add_option("--micro-batch", command.micro_batch, "Windows at a time: more is faster and takes more memory")
      ->check(at_least(1))
      ->capture_default_str();
  eval.add_flag("--json", command.json, "Print one JSON object instead of a sentence");
  add_device(eval, command.device, command.threads);
  eval.footer(
      "Examples:\n"
      "  polaron eval runs/quickstart\n"
      "  polaron eval runs/quickstart --data 'data/quickstart/validation_*.bin'");
  eval.callback([&command, &action] { action = [&command] { return run_eval(command); }; });
}

void add_generate(CLI::App& app, GenerateCommand& command, Action& action) {
  CLI::App& generate = *app.add_subcommand("generate", "Continue a text with a checkpoint");
  generate.add_option("checkpoint", command.checkpoint, "A checkpoint or a run directory")
      ->required()
      ->type_name("CHECKPOINT");
  CLI::Option* prompt =
      generate.add_option("--prompt", command.prompt, "Text to continue; empty starts a new document");
  generate
      .add_option("--prompt-ids", command.prompt_ids,
                  "Token ids to continue, separated by commas: for vocabularies that polaron cannot encode")
      ->delimiter(',')
      ->type_name("ID,...")
      ->excludes(prompt);
  generate.add_option("--tokens", command.tokens, "How many tokens to generate")
      ->check(at_least(1))
      ->capture_default_str();
  generate.add_option("--temperature", command.temperature, "0 takes the likeliest token every time")
      ->check(at_least(0))
      ->capture_default_str();
  generate.add_option("--top-k", command.top_k, "Choose among so many likeliest tokens; 0 is all")
      ->check(at_least(0))
      ->capture_default_str();
  generate.add_option("--seed", command.seed, "The same seed gives the same text")->capture_default_str();
  add_device(generate, command.device, command.threads);
  generate.footer("Example:\n  polaron generate runs/quickstart --prompt 'def main(' --tokens 200 --temperature 0.7");
  generate.callback([&command, &action] { action = [&command] { return run_generate(command); }; });
}

void add_plan(CLI::App& app, PlanCommand& command, Action& action) {
  CLI::App& plan =
      *app.add_subcommand("plan", "What a config will need: parameters, memory, FLOPs and traffic; allocates nothing");
  plan.add_option("config", command.config, "The run's config")->required()->type_name("CONFIG");
  add_overrides(plan, command.overrides);
  plan.add_option("--processes", command.processes, "Plan for so many data-parallel processes")
      ->check(at_least(1))
      ->capture_default_str();
  plan.add_option("--json", command.json, "Also write the numbers to this file, in bytes")->type_name("FILE");
  plan.footer("Example:\n  polaron plan configs/llama-1b.json --set training.micro_batch=2 --processes 8");
  plan.callback([&command, &action] { action = [&command] { return run_plan(command); }; });
}

void add_bench(CLI::App& app, BenchCommand& command, Action& action) {
  CLI::App& bench = *app.add_subcommand("bench", "Measure parts of the program on this machine");
  bench.require_subcommand(1);
  const auto add = [&](const char* name, const char* what, Exit (*run)(const BenchCommand&)) -> CLI::App& {
    CLI::App& sub = *bench.add_subcommand(name, what);
    sub.add_option("--repeats", command.repeats, "Timed repetitions; the median counts")
        ->check(at_least(1))
        ->capture_default_str();
    sub.add_option("--json", command.json, "Also write the results to this file")->type_name("FILE");
    sub.callback([&command, &action, run] { action = [&command, run] { return run(command); }; });
    return sub;
  };
  CLI::App& orthogonalize =
      add("orthogonalize", "Error and time of the orthogonalizers against rank", run_bench_orthogonalize);
  orthogonalize.add_option("--size", command.size, "Rows of the test matrices")
      ->check(at_least(1))
      ->capture_default_str();
  orthogonalize.add_option("--columns", command.columns, "Columns; 0 is square")
      ->check(at_least(0))
      ->capture_default_str();
  add_device(orthogonalize, command.device, command.threads);
  CLI::App& regression =
      add("regression", "MSGD and its low-rank form on a matrix problem with heavy-tailed noise", run_bench_regression);
  regression.add_option("--rows", command.unknown_rows, "Rows of the unknown matrix")
      ->check(at_least(2))
      ->capture_default_str();
  regression.add_option("--columns", command.unknown_columns, "Its columns, at least as many")
      ->check(at_least(2))
      ->capture_default_str();
  regression.add_option("--steps", command.steps, "Steps of each run")->check(at_least(1))->capture_default_str();
  regression.add_option("--noise", command.noise, "Scale of the noise, in root mean squares of the first gradient")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  regression
      .add_option("--tolerances", command.tolerances,
                  "Shares of the first gradient's nuclear norm that are to be reached")
      ->check(CLI::PositiveNumber)
      ->delimiter(',')
      ->capture_default_str();
  add_device(regression, command.device, command.threads);
  for (CLI::App* sub :
       {&add("optimizer", "One optimizer step over a model's matrices, method against method", run_bench_optimizer),
        &add("step", "A whole training step on random tokens, with a profile by op", run_bench_step)}) {
    sub->add_option("config", command.config, "Whose model")->required()->type_name("CONFIG");
    add_overrides(*sub, command.overrides);
    add_device_overrides(*sub, command.overrides);
  }
  bench.footer(
      "Examples:\n  polaron bench optimizer configs/gpt2-124m.json --set optimizer.matrices.rank=96\n"
      "  polaron bench step configs/gpt2-124m.json --set training.batch=4 --set training.sequence_length=64");
}

void add_config(CLI::App& app, ConfigCommand& command, Action& action) {
  CLI::App& config =
      *app.add_subcommand("config", "Show a config as the program understands it, or the reference of all keys");
  CLI::Option* file =
      config.add_option("config", command.config, "A config to check and print in full")->type_name("CONFIG");
  add_overrides(config, command.overrides);
  CLI::Option* markdown =
      config.add_flag("--markdown", command.markdown, "Print the reference of all keys (docs/config.md)");
  config.add_flag("--schema", command.schema, "Print the JSON schema for editors")->excludes(markdown)->excludes(file);
  config.callback([&command, &action, file] {
    if (file->count() == 0 && !command.markdown && !command.schema) {
      throw CLI::RequiredError("CONFIG, --markdown or --schema");
    }
    action = [&command] { return run_config(command); };
  });
}

}  // namespace

int run_command_line(int argc, const char* const* argv) {
  // A limit on file sizes (ulimit -f) is to be an error of the write, which says what is missing, not a death by
  // signal.
  ::signal(SIGXFSZ, SIG_IGN);
  CLI::App app(
      "polaron pretrains GPT-2 and LLaMA models with AdamW, Muon, low-rank Muon and low-rank MSGD.\n"
      "Start with: polaron train configs/quickstart.json",
      "polaron");
  app.set_version_flag("--version", std::string("polaron ") + POLARON_VERSION);
  app.require_subcommand(1);
  app.footer(
      "`polaron COMMAND --help` explains a command.\n"
      "Exit codes: 0 done, 2 bad usage or config, 3 bad data or checkpoint, 4 numerical failure, 5 device failure,\n"
      "6 interrupted but resumable.");
  TrainCommand train;
  EvalCommand eval;
  GenerateCommand generate;
  PlanCommand plan;
  BenchCommand bench;
  ConfigCommand config;
  Action action;
  add_train(app, train, action);
  add_eval(app, eval, action);
  add_generate(app, generate, action);
  add_plan(app, plan, action);
  add_bench(app, bench, action);
  add_config(app, config, action);
  if (argc > 1 && argv[1][0] != '-') {
    std::vector<std::string> names;
    for (const CLI::App* known : app.get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(known->get_name());
    }
    if (std::find(names.begin(), names.end(), argv[1]) == names.end()) {
      std::cerr << "There is no command '" << argv[1] << "'; the commands are " << quoted_list(names)
                << ".\nRun with --help for more information.\n";
      return static_cast<int>(Exit::usage);
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& problem) {
    const int code = app.exit(problem);
    return code == 0 ? 0 : static_cast<int>(Exit::usage);
  }
  try {
    return static_cast<int>(action());
  } catch (const std::exception&) {
    const Failure failure = describe_failure(std::current_exception());
    log::error(failure.message);
    return static_cast<int>(failure.code);
  }
}

Failure describe_failure(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& problem) {
    return {problem.what(), problem.code()};
  } catch (const std::bad_alloc&) {
    return {"out of memory.", Exit::device};
  } catch (const std::filesystem::filesystem_error& problem) {
    return {"cannot reach '" + problem.path1().string() + "': " + problem.code().message() +
                ". Check the path and its permissions.",
            Exit::data};
  } catch (const std::exception& problem) {
    return {std::string("this is a bug in polaron: ") + problem.what(), Exit::bug};
  }
}

}  // namespace polaron

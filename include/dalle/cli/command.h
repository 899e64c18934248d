// Command<Config>: what every CONFIG command shares: the frozen flag list, help from the config's own fields, exit codes,
// --set, --print-config, --check, --resume, and the only catch of the program. A tool's main names itself and gives two
// functions. ArgsCommand<Options> does the same for commands that take flags instead of a config.
//
// Exit codes: 0 done, 1 the run failed, 2 wrong usage or config, 3 stopped by a signal after saving.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "dalle/config/fields.h"

namespace dalle::cli {

enum ExitCode : int { kDone = 0, kFailed = 1, kUsage = 2, kStopped = 3 };

/// What the flags of a CONFIG command say, apart from the config itself.
struct Invocation {
  std::string command;            // "train-dvae"
  std::string config_name;        // stem of the config file, for the default run directory
  std::filesystem::path run_dir;  // empty: runs/<name>-<time>
  bool resume = false;
  std::filesystem::path checkpoint;  // with --resume=PATH to a checkpoint folder; else empty: the latest
  std::string device = "auto";
  int threads = 0;              // 0: as many as the machine has
  std::string resolved_config;  // the complete config as YAML, for run_dir/config.yaml
};

/// The type-erased half of Command, in command.cpp.
struct CommandSpec {
  std::string name;
  std::string summary;
  std::vector<config::FieldDescription> fields;
  std::function<config::Node(const config::Node&)> complete;  // load, validate, dump: all fields filled in
  std::function<int(const config::Node&, const Invocation&)> run;
  std::function<void(const config::Node&, const Invocation&)> check;
  std::function<bool()> is_restart;  // by a launcher, with the same arguments: then the run in --run-dir goes on
};

int run_command(const CommandSpec& spec, int argc, char** argv);

/// Throws ConfigError, of "PLACE: key", for the first key that differs and can't change in the middle of a run. `saved_place`:
/// where it is as it was.
void require_resumable(const std::vector<config::FieldDescription>& fields, const config::Node& saved,
                       const config::Node& given, const std::string& place, const std::string& saved_place);

/// The flags of every CONFIG command, in the order of the help text; a test freezes them.
std::vector<std::string> common_flags();

template <class Config>
int run_config_command(std::string name, std::string summary, int argc, char** argv,
                       std::function<int(const Config&, const Invocation&)> run,
                       std::function<void(const Config&, const Invocation&)> check,
                       std::function<bool()> is_restart = nullptr) {
  CommandSpec spec;
  spec.name = std::move(name);
  spec.summary = std::move(summary);
  spec.fields = config::describe<Config>();
  spec.complete = [](const config::Node& node) { return config::dump(config::load_config<Config>(node)); };
  spec.run = [run](const config::Node& node, const Invocation& call) {
    return run(config::load_config<Config>(node), call);
  };
  spec.check = [check](const config::Node& node, const Invocation& call) {
    check(config::load_config<Config>(node), call);
  };
  spec.is_restart = std::move(is_restart);
  return run_command(spec, argc, argv);
}

/// One flag of an ArgsCommand: field batch_size of Options becomes --batch-size.
struct ArgsSpec {
  std::string name;
  std::string summary;
  std::string positional;  // field filled by arguments without a flag; "" for none
  std::vector<config::FieldDescription> fields;
  std::function<int(const config::Node&)> run;
};

int run_args_command(const ArgsSpec& spec, int argc, char** argv);

template <class Options>
int run_flags_command(std::string name, std::string summary, std::string positional, int argc, char** argv,
                      std::function<int(const Options&)> run) {
  ArgsSpec spec;
  spec.name = std::move(name);
  spec.summary = std::move(summary);
  spec.positional = std::move(positional);
  spec.fields = config::describe<Options>();
  spec.run = [run](const config::Node& node) { return run(config::load_config<Options>(node)); };
  return run_args_command(spec, argc, argv);
}

/// Calls `body` and turns what it throws into a message on stderr and an exit code. The only catch of the program.
int guarded(const std::string& name, const std::function<int()>& body);

/// Prints an error as guarded() does and ends the process with exit code 1, without a look at what other threads do: for a
/// thread that sees that the main one waits in vain.
[[noreturn]] void end_at_once(const std::string& name, const std::string& message);

}  // namespace dalle::cli

#include "dalle/cli/command.h"

#include <c10/util/Exception.h>

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"

namespace dalle::cli {
namespace {

namespace fs = std::filesystem;

struct Flags {
  std::string config;
  std::vector<std::string> set;
  std::string run_dir;
  std::string resume;  // "" absent, "true" given without a path
  std::string device = "auto";
  int threads = 0;
  bool print_config = false;
  bool check = false;
};

std::string first_line_indented(const config::FieldDescription& row) {
  std::string text = "  " + row.path + ": " + row.type;
  if (!row.unit.empty()) text += ", in " + row.unit;
  text += " [" + row.default_value + "]";
  return text;
}

std::string keys_help(const std::vector<config::FieldDescription>& fields) {
  std::string text = "Config keys (type, unit, [default]; * may change on --resume):\n";
  for (const auto& row : fields) {
    text += first_line_indented(row) + (row.changeable ? " *" : "") + "\n      " + row.help + "\n";
  }
  return text;
}

void add_common_flags(CLI::App& app, Flags& flags) {
  app.add_option("CONFIG", flags.config, "YAML config file (optional with --resume)");
  app.add_option("--set", flags.set, "override a config key, for example trainer.num_steps=100; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  app.add_option("--run-dir", flags.run_dir, "where the run is kept [runs/<name>-<time>]")->type_name("DIR");
  app.add_flag("--resume", flags.resume,
               "continue the run in --run-dir; --resume=PATH names a run directory or one of its checkpoints");
  app.add_option("--device", flags.device, "auto, cpu, cuda or cuda:INDEX [auto]")->type_name("DEVICE");
  app.add_option("--threads", flags.threads, "CPU threads; 0 = all [0]")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber.description(""));
  app.add_flag("--print-config", flags.print_config, "print the complete config and exit");
  app.add_flag("--check", flags.check, "load, validate, report the model's size and memory, and exit");
}

// A launcher that starts the command anew does not say --resume. A run that never got as far as its config starts afresh.
void go_on_after_restart(const CommandSpec& spec, Flags& flags) {
  if (!flags.resume.empty() || !spec.is_restart || !spec.is_restart()) return;
  if (flags.run_dir.empty()) {
    log_warning(
        "started again by the launcher, but without --run-dir this is a new run: it cannot go on with the last");
  } else if (fs::exists(fs::path(flags.run_dir) / "config.yaml")) {
    flags.resume = "true";
  }
}

// --resume=PATH may name a run directory or runs/x/checkpoints/step-N.
void resolve_resume(const Flags& flags, Invocation& call) {
  call.resume = !flags.resume.empty();
  call.run_dir = flags.run_dir.empty() ? fs::path() : fs::absolute(flags.run_dir).lexically_normal();
  if (!call.resume) return;
  if (flags.resume != "true") {
    fs::path given = fs::absolute(flags.resume).lexically_normal();
    if (!given.has_filename()) given = given.parent_path();
    if (!fs::exists(given))
      throw ConfigError(Problem{"--resume=" + flags.resume, "a run directory or checkpoint", "nothing there", ""});
    if (fs::exists(given / "state.json")) {
      call.checkpoint = given;
      given = given.parent_path().parent_path();
    }
    if (given.parent_path().filename() == "checkpoints" && !fs::exists(given / "config.yaml")) {
      throw ConfigError(Problem{"--resume=" + flags.resume, "a whole checkpoint, with state.json",
                                "a folder without it, damaged", "name another of that run, or the run itself"});
    }
    if (!call.run_dir.empty() && call.run_dir != given) {
      throw ConfigError(Problem{"--resume=" + flags.resume,
                                "the run directory given by --run-dir, " + call.run_dir.string(), given.string(), ""});
    }
    call.run_dir = given;
  }
  if (call.run_dir.empty()) {
    throw ConfigError(Problem{"--resume", "a run directory", "none", "say --run-dir DIR --resume, or --resume=DIR"});
  }
  if (!fs::exists(call.run_dir / "config.yaml")) {
    throw ConfigError(
        Problem{"--resume: " + call.run_dir.string(), "a run directory with config.yaml", "none there", ""});
  }
}

// The run directory's config rules; what CONFIG or --set say differently must be declared changeable.
config::Node merge_resumed(const CommandSpec& spec, const config::Node& saved, const config::Node& given) {
  require_resumable(spec.fields, saved, given, "--resume", "the run directory's config.yaml");
  for (const auto& change : config::diff(saved, given)) {
    log_info(str("resume: ", change.path, " changes from ", change.before, " to ", change.after));
  }
  return given;
}

config::Node load_tree(const CommandSpec& spec, const Flags& flags, Invocation& call) {
  resolve_resume(flags, call);
  // A launcher repeats --resume=PATH: what has come since counts.
  if (spec.is_restart && spec.is_restart()) call.checkpoint.clear();
  config::Node tree = config::Node::of_map();
  config::Node saved;
  if (call.resume) saved = spec.complete(config::parse_yaml_file(call.run_dir / "config.yaml"));
  if (!flags.config.empty()) {
    tree = config::parse_yaml_file(fs::absolute(flags.config));
    call.config_name = fs::path(flags.config).stem().string();
  } else if (call.resume) {
    tree = saved;
  } else {
    throw ConfigError(Problem{spec.name, "CONFIG.yaml", "no argument", "see " + spec.name + " --help"});
  }
  for (const auto& assignment : flags.set) config::apply_set(tree, assignment);
  config::Node complete = spec.complete(tree);
  return call.resume ? merge_resumed(spec, saved, complete) : complete;
}

std::string flag_of(const std::string& field) {
  std::string flag = "--" + field;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

// "list of path" -> "PATH ...", "int" -> "N", "a|b" stays.
std::string flag_type(const config::FieldDescription& field) {
  std::string type = field.type;
  const bool is_list = type.starts_with("list of ");
  if (is_list) type = type.substr(8);
  if (type == "string") type = "TEXT";
  if (type == "path") type = "PATH";
  if (type == "int") type = "N";
  if (type == "float") type = "X";
  return type + (field.unit.empty() ? "" : " (" + field.unit + ")") + (is_list ? " ..." : "");
}

std::string flag_help(const config::FieldDescription& field) {
  const std::string& shown = field.default_value;
  return field.help + (shown.empty() || shown == "[]" || field.type == "bool" ? "" : " [" + shown + "]");
}

// "NAME: MESSAGE", unless the message says its place already.
std::string with_name(const std::string& name, const std::string& message) {
  return message.starts_with(name + ":") ? message : name + ": " + message;
}

config::Node scalar_at(const std::string& text, const std::string& place) {
  config::Node node = config::Node::of_scalar(text);
  node.file = place;
  return node;
}

}  // namespace

std::vector<std::string> common_flags() {
  CLI::App app;
  Flags flags;
  add_common_flags(app, flags);
  std::vector<std::string> names;
  for (const auto* option : app.get_options()) names.push_back(option->get_name());
  return names;
}

int guarded(const std::string& name, const std::function<int()>& body) {
  keep_freed_memory();
  try {
    return body();
  } catch (const ConfigError& error) {
    log_error(with_name(name, error.what()));
    return kUsage;
  } catch (const Error& error) {
    log_error(with_name(name, error.what()));
  } catch (const c10::Error& error) {
    log_error(with_name(name, error.what_without_backtrace()));
    log_debug(error.what());
  } catch (const std::exception& error) {
    log_error(with_name(name, error.what()));
  }
  return kFailed;
}

void end_at_once(const std::string& name, const std::string& message) {
  log_error(with_name(name, message));
  std::cout.flush();
  ::_exit(kFailed);
}

int run_command(const CommandSpec& spec, int argc, char** argv) {
  CLI::App app(spec.summary, spec.name);
  Flags flags;
  add_common_flags(app, flags);
  app.footer([&] { return keys_help(spec.fields); });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, std::cout, std::cerr) == 0 ? kDone : kUsage;
  }
  return guarded(spec.name, [&]() -> int {
    go_on_after_restart(spec, flags);
    Invocation call;
    call.command = spec.name;
    call.device = flags.device;
    call.threads = flags.threads;
    const config::Node tree = load_tree(spec, flags, call);
    call.resolved_config = config::emit_yaml(tree);
    if (call.config_name.empty()) call.config_name = call.run_dir.filename().string();
    if (flags.print_config) {
      std::cout << call.resolved_config;
      return kDone;
    }
    if (flags.check) {
      spec.check(tree, call);
      return kDone;
    }
    return spec.run(tree, call);
  });
}

int run_args_command(const ArgsSpec& spec, int argc, char** argv) {
  CLI::App app(spec.summary, spec.name);
  std::vector<std::vector<std::string>> values(spec.fields.size());
  std::vector<CLI::Option*> options;
  const bool has_list_without_flag = std::any_of(spec.fields.begin(), spec.fields.end(), [&](const auto& field) {
    return field.path == spec.positional && field.type.starts_with("list of");
  });
  for (size_t i = 0; i < spec.fields.size(); ++i) {
    const auto& field = spec.fields[i];
    const bool positional = field.path == spec.positional;
    const std::string help = flag_help(field), type = flag_type(field);
    if (field.type == "bool" && !positional) {
      options.push_back(app.add_flag(flag_of(field.path), help));
      continue;
    }
    auto* option = app.add_option(positional ? field.path : flag_of(field.path), values[i], help)->type_name(type);
    if (!field.type.starts_with("list of")) {
      option->expected(1);
    } else if (!positional && !has_list_without_flag) {
      option->expected(1, 1 << 20);
    } else if (!positional) {  // one for each time it is said: it must not swallow what stands after it
      option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    }  // a positional list is one already, and is shown as "images..."
    // Else CLI11 takes "[a, b]" apart, which is a caption here. Positional lists cannot do without.
    if (!positional) option->allow_extra_args(false);
    options.push_back(option);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, std::cout, std::cerr) == 0 ? kDone : kUsage;
  }
  return guarded(spec.name, [&]() -> int {
    config::Node tree = config::Node::of_map();
    for (size_t i = 0; i < spec.fields.size(); ++i) {
      const auto& field = spec.fields[i];
      if (options[i]->count() == 0) continue;
      const std::string place = field.path == spec.positional ? field.path : flag_of(field.path);
      if (field.type == "bool") {
        tree.set(field.path, scalar_at("true", place));
      } else if (field.type.starts_with("list of")) {
        config::Node list = config::Node::of_list();
        list.file = place;
        for (const auto& text : values[i]) list.list.push_back(scalar_at(text, place));
        tree.set(field.path, std::move(list));
      } else {
        tree.set(field.path, scalar_at(values[i].back(), place));
      }
    }
    return spec.run(tree);
  });
}

void require_resumable(const std::vector<config::FieldDescription>& fields, const config::Node& saved,
                       const config::Node& given, const std::string& place, const std::string& saved_place) {
  for (const auto& change : config::diff(saved, given)) {
    if (config::is_changeable(fields, change.path)) continue;
    throw ConfigError(Problem{str(place, ": ", change.path), str("'", change.before, "' as in ", saved_place),
                              str("'", change.after, "'"),
                              "this key can't change in the middle of a run; start a new run for it"});
  }
}

}  // namespace dalle::cli

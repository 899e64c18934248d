// What every command shares: the frozen flags, help from the fields, exit codes, --set, --print-config, resuming.
#include "dalle/cli/command.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Trainer {
  int64_t num_steps = 100;
  double lr = 0.5;
  static void visit_fields(auto& self, auto&& field) {
    field("num_steps", self.num_steps, "updates to do", {.min = 1, .unit = "steps", .changeable = true});
    field("lr", self.lr, "learning rate", {.min = 0});
  }
};

struct Config {
  std::string name = "unnamed";
  fs::path data;
  Trainer trainer;
  static void visit_fields(auto& self, auto&& field) {
    field("name", self.name, "name of the run");
    field("data", self.data, "where pictures are");
    field("trainer", self.trainer, "the loop");
  }
};

struct Outcome {
  int code = -1;
  std::string out, err;
  std::optional<Config> ran, checked;
  Invocation call;
};

/// Calls a command in this process; `body` replaces what it runs.
Outcome run(
    std::vector<std::string> arguments, const std::function<int()>& body = [] { return int{kDone}; },
    const std::function<bool()>& is_restart = nullptr) {
  Outcome outcome;
  arguments.insert(arguments.begin(), "train-x");
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  outcome.code = run_config_command<Config>(
      "train-x", "Trains x.", static_cast<int>(argv.size()), argv.data(),
      [&](const Config& config, const Invocation& call) {
        outcome.ran = config;
        outcome.call = call;
        return body();
      },
      [&](const Config& config, const Invocation& call) {
        outcome.checked = config;
        outcome.call = call;
      },
      is_restart);
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err = ::testing::internal::GetCapturedStderr();
  return outcome;
}

struct Command : ::testing::Test {
  testing::TempDirectory scratch{"cli-command"};
  std::string config = (scratch / "small.yaml").string();
  void SetUp() override { write_file(config, "name: tiny\ndata: pictures\ntrainer:\n  num_steps: 5\n"); }

  /// A run directory as a trainer leaves it, with `extra` in its config.
  std::string make_run() {
    const Outcome first = run({config});
    fs::create_directories(scratch / "run" / "checkpoints" / "step-00000005");
    write_file(scratch / "run" / "config.yaml", first.call.resolved_config);
    write_file(scratch / "run" / "checkpoints" / "step-00000005" / "state.json", "{}");
    return (scratch / "run").string();
  }
};

TEST(CommonFlags, AreFrozen) {
  // The flag list of docs/architecture.md: everything else is a config key.
  EXPECT_THAT(common_flags(), ElementsAre("--help", "CONFIG", "--set", "--run-dir", "--resume", "--device", "--threads",
                                          "--print-config", "--check"));
}

TEST_F(Command, RunsWithTheConfigAndDefaults) {
  const Outcome outcome = run({config});
  EXPECT_EQ(outcome.code, kDone);
  ASSERT_TRUE(outcome.ran.has_value());
  EXPECT_EQ(outcome.ran->name, "tiny");
  EXPECT_EQ(outcome.ran->data, scratch / "pictures");
  EXPECT_EQ(outcome.ran->trainer.num_steps, 5);
  EXPECT_EQ(outcome.call.command, "train-x");
  EXPECT_EQ(outcome.call.config_name, "small");
  EXPECT_TRUE(outcome.call.run_dir.empty());
  EXPECT_FALSE(outcome.call.resume);
  EXPECT_EQ(outcome.call.device, "auto");
  EXPECT_EQ(outcome.call.threads, 0);
  EXPECT_THAT(outcome.call.resolved_config, HasSubstr("lr: 0.5"));  // complete, not only what the file says
}

TEST_F(Command, FlagsArriveInAnyOrder) {
  const std::string where = (scratch / "out").string();
  for (const auto& arguments :
       {std::vector<std::string>{config, "--device", "cpu", "--threads", "3", "--run-dir", where},
        {"--threads=3", "--run-dir=" + where, config, "--device=cpu"}}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_EQ(outcome.call.device, "cpu");
    EXPECT_EQ(outcome.call.threads, 3);
    EXPECT_EQ(outcome.call.run_dir, scratch / "out");
  }
}

TEST_F(Command, SetOverridesTheFile) {
  for (const auto& arguments : {std::vector<std::string>{config, "--set", "trainer.num_steps=9", "--set", "name=[x"},
                                {"--set", "trainer.num_steps=9", config},
                                {"--set=trainer.num_steps=9", config}}) {
    const Outcome outcome = run(arguments);
    if (arguments.size() == 5) {
      EXPECT_EQ(outcome.code, kUsage);
      EXPECT_THAT(outcome.err, HasSubstr("--set name=[x"));
      continue;
    }
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_EQ(outcome.ran->trainer.num_steps, 9);
    EXPECT_EQ(outcome.ran->name, "tiny");
  }
  const Outcome twice = run({config, "--set", "trainer.num_steps=9", "--set", "trainer.num_steps=1e3"});
  EXPECT_EQ(twice.ran->trainer.num_steps, 1000);
}

TEST_F(Command, PrintConfigParsesBackToTheSameConfigAndRunsNothing) {
  const Outcome printed = run({config, "--set", "trainer.lr=0.25", "--print-config"});
  EXPECT_EQ(printed.code, kDone);
  EXPECT_FALSE(printed.ran || printed.checked);
  fs::create_directories(scratch / "elsewhere");
  write_file(scratch / "elsewhere" / "again.yaml", printed.out);
  const std::string again = (scratch / "elsewhere" / "again.yaml").string();
  EXPECT_EQ(run({again, "--print-config"}).out, printed.out);
  const Outcome ran = run({again});
  EXPECT_EQ(ran.ran->trainer.lr, 0.25);
  EXPECT_EQ(ran.ran->data, scratch / "pictures");  // still where the first file said
}

TEST_F(Command, CheckChecksAndRunsNothing) {
  const Outcome outcome = run({config, "--check"});
  EXPECT_EQ(outcome.code, kDone);
  EXPECT_FALSE(outcome.ran.has_value());
  EXPECT_EQ(outcome.checked->trainer.num_steps, 5);
}

TEST_F(Command, HelpEndsWithEveryKey) {
  const Outcome outcome = run({"--help"});
  EXPECT_EQ(outcome.code, kDone);
  EXPECT_FALSE(outcome.ran.has_value());
  for (const auto& flag : common_flags()) EXPECT_THAT(outcome.out, HasSubstr(flag));
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("Trains x."), HasSubstr("trainer.num_steps: int, in steps [100] *"),
                                 HasSubstr("updates to do"), HasSubstr("trainer.lr: float [0.5]\n")));
}

TEST_F(Command, WrongUsageIsTwo) {
  for (const auto& arguments : {std::vector<std::string>{},
                                {config, "extra"},
                                {config, "--no-such-flag"},
                                {config, "--set"},
                                {config, "--threads", "x"},
                                {config, "--threads", "-1"},
                                {config, "--set", "trainer.steps=3"},
                                {config, "--set", "trainer.num_steps=0"},
                                {config, "--set", "trainer.num_steps=soon"},
                                {(scratch / "no.yaml").string()}}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, kUsage) << ::testing::PrintToString(arguments);
    EXPECT_FALSE(outcome.ran.has_value());
    EXPECT_NE(outcome.err, "") << ::testing::PrintToString(arguments);
  }
  EXPECT_THAT(run({config, "--set", "trainer.num_step=3"}).err, HasSubstr("did you mean 'num_steps'?"));
}

TEST_F(Command, ExitCodesOfTheRun) {
  const auto code_of = [&](const std::function<int()>& body) { return run({config}, body).code; };
  EXPECT_EQ(code_of([] { return int{kStopped}; }), 3);
  EXPECT_EQ(code_of([]() -> int { throw ConfigError("x"); }), 2);
  EXPECT_EQ(code_of([]() -> int { throw DataError("x"); }), 1);
  EXPECT_EQ(code_of([]() -> int { throw CheckpointError("x"); }), 1);
  EXPECT_EQ(code_of([]() -> int { throw FileError("x"); }), 1);
  EXPECT_EQ(code_of([]() -> int { throw std::runtime_error("x"); }), 1);
  EXPECT_EQ(code_of([]() -> int { TORCH_CHECK_VALUE(false, "x"); }), 1);
}

TEST_F(Command, ErrorsAreOneLineWithTheCommandsName) {
  EXPECT_EQ(run({config}, []() -> int { throw DataError("a.tar: cut short"); }).err,
            "error: train-x: a.tar: cut short\n");
  const Outcome torch = run({config}, []() -> int { TORCH_CHECK_VALUE(false, "[x] expected ", 3); });
  EXPECT_EQ(torch.err, "error: train-x: [x] expected 3\n");  // without LibTorch's call stack
}

TEST_F(Command, ResumeTakesTheRunsConfig) {
  const std::string dir = make_run();
  for (const auto& arguments : {std::vector<std::string>{"--run-dir", dir, "--resume"},
                                {"--resume=" + dir},
                                {"--resume=" + dir + "/"},
                                {config, "--resume=" + dir},
                                {config, "--run-dir", dir, "--resume"},
                                {"--resume", config, "--run-dir", dir}}) {
    const Outcome outcome = run(arguments);
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_TRUE(outcome.call.resume);
    EXPECT_EQ(outcome.call.run_dir, dir);
    EXPECT_TRUE(outcome.call.checkpoint.empty());
    EXPECT_EQ(outcome.ran->trainer.num_steps, 5);
    EXPECT_EQ(outcome.ran->data, scratch / "pictures");
  }
  const std::string step = dir + "/checkpoints/step-00000005";
  const Outcome exact = run({"--resume=" + step});
  EXPECT_EQ(exact.call.run_dir, dir);
  EXPECT_EQ(exact.call.checkpoint, step);
}

TEST_F(Command, ResumeAcceptsChangeableKeysAndSaysSo) {
  const std::string dir = make_run();
  const Outcome outcome = run({"--resume=" + dir, "--set", "trainer.num_steps=50"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(outcome.ran->trainer.num_steps, 50);
  EXPECT_THAT(outcome.err, HasSubstr("trainer.num_steps changes from 5 to 50"));
  EXPECT_THAT(outcome.call.resolved_config, HasSubstr("num_steps: 50"));
  write_file(config, "name: tiny\ndata: pictures\ntrainer:\n  num_steps: 7\n");
  EXPECT_EQ(run({config, "--resume=" + dir}).ran->trainer.num_steps, 7);
}

TEST_F(Command, ResumeRefusesOtherKeysWithBothValues) {
  const std::string dir = make_run();
  const Outcome outcome = run({"--resume=" + dir, "--set", "trainer.lr=0.25"});
  EXPECT_EQ(outcome.code, kUsage);
  EXPECT_FALSE(outcome.ran.has_value());
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("trainer.lr"), HasSubstr("'0.5'"), HasSubstr("'0.25'")));
  write_file(config, "name: other\ndata: pictures\ntrainer:\n  num_steps: 5\n");
  EXPECT_THAT(run({config, "--resume=" + dir}).err, AllOf(HasSubstr("'tiny'"), HasSubstr("'other'")));
}

TEST_F(Command, ARestartOfTheLauncherGoesOnWithTheRun) {
  const std::string dir = make_run();
  const auto run_anew = [&](std::vector<std::string> arguments, bool is_restart) {
    return run(
        std::move(arguments), [] { return int{kDone}; }, [=] { return is_restart; });
  };
  const Outcome again = run_anew({config, "--run-dir", dir, "--set", "trainer.num_steps=9"}, true);
  EXPECT_EQ(again.code, kDone) << again.err;
  EXPECT_TRUE(again.call.resume);
  EXPECT_EQ(again.call.run_dir, dir);
  EXPECT_EQ(again.ran->trainer.num_steps, 9);
  EXPECT_FALSE(run_anew({config, "--run-dir", dir}, false).call.resume);
  // What may not change in the middle of a run still may not.
  EXPECT_EQ(run_anew({config, "--run-dir", dir, "--set", "trainer.lr=0.25"}, true).code, kUsage);
  // Killed before it had a config; and a command from which no run can be told.
  const Outcome early = run_anew({config, "--run-dir", (scratch / "none").string()}, true);
  EXPECT_EQ(early.code, kDone) << early.err;
  EXPECT_FALSE(early.call.resume);
  const Outcome nameless = run_anew({config}, true);
  EXPECT_FALSE(nameless.call.resume);
  EXPECT_THAT(nameless.err, HasSubstr("without --run-dir"));
}

TEST_F(Command, ResumeNeedsARun) {
  const std::string dir = make_run();
  EXPECT_THAT(run({"--resume"}).err, HasSubstr("--run-dir DIR --resume"));
  EXPECT_THAT(run({"--resume=" + (scratch / "none").string()}).err, HasSubstr("nothing there"));
  EXPECT_THAT(run({config, "--resume", "--run-dir", (scratch / "none").string()}).err, HasSubstr("config.yaml"));
  EXPECT_THAT(run({"--resume=" + dir, "--run-dir", (scratch / "other").string()}).err, HasSubstr("given by --run-dir"));
  for (const char* bad : {"--resume", "--resume=/nowhere/at/all"}) EXPECT_EQ(run({bad}).code, kUsage);
}

enum class Order { kUp, kDown };

}  // namespace
}  // namespace dalle::cli

namespace dalle {
template <>
struct EnumNames<cli::Order> {
  static constexpr EnumName<cli::Order> values[] = {{cli::Order::kUp, "up"}, {cli::Order::kDown, "down"}};
};
}  // namespace dalle

namespace dalle::cli {
namespace {

struct Options {
  std::vector<fs::path> images;
  std::vector<std::string> caption;
  fs::path out;
  int64_t batch_size = 8;
  double top_p = 1;
  Order order = Order::kUp;
  bool save_tokens = false;
  static void visit_fields(auto& self, auto&& field) {
    field("images", self.images, "picture files");
    field("caption", self.caption, "captions");
    field("out", self.out, "results");
    field("batch_size", self.batch_size, "how many at once", {.min = 1, .unit = "pictures"});
    field("top_p", self.top_p, "mass", {.min = 0, .max = 1});
    field("order", self.order, "which way");
    field("save_tokens", self.save_tokens, "write tokens");
  }
};

struct FlagsOutcome {
  int code = -1;
  std::string out, err;
  std::optional<Options> options;
};

FlagsOutcome run_flags(std::vector<std::string> arguments, const std::string& positional = "images") {
  FlagsOutcome outcome;
  arguments.insert(arguments.begin(), "do-x");
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  outcome.code = run_flags_command<Options>("do-x", "Does x.", positional, static_cast<int>(argv.size()), argv.data(),
                                            [&](const Options& options) {
                                              outcome.options = options;
                                              return int{kDone};
                                            });
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err = ::testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(FlagsCommand, FieldsAreKebabCaseFlags) {
  const auto outcome = run_flags(
      {"a.png", "b.png", "--batch-size", "4", "--top-p=0.5", "--order", "down", "--save-tokens", "--out", "results"});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_THAT(outcome.options->images, ElementsAre(fs::current_path() / "a.png", fs::current_path() / "b.png"));
  EXPECT_EQ(outcome.options->batch_size, 4);
  EXPECT_EQ(outcome.options->top_p, 0.5);
  EXPECT_EQ(outcome.options->order, Order::kDown);
  EXPECT_TRUE(outcome.options->save_tokens);
  EXPECT_EQ(outcome.options->out, fs::current_path() / "results");
}

TEST(FlagsCommand, NoFlagsKeepTheDefaults) {
  const auto outcome = run_flags({});
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_TRUE(outcome.options->images.empty() && outcome.options->caption.empty() && outcome.options->out.empty());
  EXPECT_EQ(outcome.options->batch_size, 8);
  EXPECT_EQ(outcome.options->order, Order::kUp);
  EXPECT_FALSE(outcome.options->save_tokens);
}

TEST(FlagsCommand, ListsTakeSeveralValuesAndMayBeRepeated) {
  for (const auto& arguments : {std::vector<std::string>{"--caption", "a red cat", "two dogs", "--out", "x"},
                                {"--caption", "a red cat", "--out", "x", "--caption", "two dogs"},
                                {"--caption=a red cat", "--caption=two dogs"}}) {
    const auto outcome = run_flags(arguments, "");
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_THAT(outcome.options->caption, ElementsAre("a red cat", "two dogs"));
  }
}

TEST(FlagsCommand, BesideAListWithoutAFlagOneValueEach) {
  for (const auto& arguments : {std::vector<std::string>{"--caption", "[a, b]", "--caption", "x", "1.png", "2.png"},
                                {"1.png", "--caption", "[a, b]", "2.png", "--caption=x"}}) {
    const auto outcome = run_flags(arguments);
    ASSERT_EQ(outcome.code, kDone) << outcome.err;
    EXPECT_THAT(outcome.options->caption, ElementsAre("[a, b]", "x"));
    EXPECT_THAT(outcome.options->images, ElementsAre(fs::current_path() / "1.png", fs::current_path() / "2.png"));
  }
}

TEST(FlagsCommand, TextsAreTakenAsTheyAre) {
  const std::vector<std::string> odd{"[a, b]", "1e-4", "true", "null", "x: y", "{}", "a,b", "\"q\""};
  std::vector<std::string> arguments{"--caption"};
  arguments.insert(arguments.end(), odd.begin(), odd.end());
  const auto outcome = run_flags(arguments, "");
  ASSERT_EQ(outcome.code, kDone) << outcome.err;
  EXPECT_EQ(outcome.options->caption, odd);
  EXPECT_THAT(run_flags({"[1].png"}).options->images, ElementsAre(fs::current_path() / "[1].png"));
  EXPECT_EQ(run_flags({"--out", "[x]"}).options->out, fs::current_path() / "[x]");
}

TEST(FlagsCommand, WrongUsageIsTwoAndNamesTheFlag) {
  for (const auto& [arguments, part] :
       {std::pair<std::vector<std::string>, const char*>{{"--batch-size", "0"}, "--batch-size"},
        {{"--batch-size", "many"}, "--batch-size"},
        {{"--top-p", "1.5"}, "--top-p"},
        {{"--order", "left"}, "up, down"},
        {{"--out"}, "--out"},
        {{"--caption"}, "--caption"},
        {{"--batch_size", "3"}, "--batch_size"},
        {{"--no-such"}, "--no-such"}}) {
    const auto outcome = run_flags(arguments);
    EXPECT_EQ(outcome.code, kUsage) << ::testing::PrintToString(arguments);
    EXPECT_THAT(outcome.err, HasSubstr(part));
    EXPECT_FALSE(outcome.options.has_value());
  }
  EXPECT_EQ(run_flags({"stray"}, "").code, kUsage);
}

TEST(FlagsCommand, HelpShowsTypesUnitsAndDefaults) {
  const auto outcome = run_flags({"--help"});
  EXPECT_EQ(outcome.code, kDone);
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("Does x."), HasSubstr("--batch-size"), HasSubstr("pictures"), HasSubstr("[8]"),
                    HasSubstr("up|down"), HasSubstr("images"), HasSubstr("--save-tokens")));
}

}  // namespace
}  // namespace dalle::cli

#include "dalle/training/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <regex>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "support/temp_directory.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string config_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no ConfigError";
  return "";
}

TEST(RunDirectory, CreatesItsParts) {
  const testing::TempDirectory scratch("run-create");
  const auto run = RunDirectory::create(scratch / "a/b/run", "trainer: {}\n");
  EXPECT_EQ(read_file(run.config_file()), "trainer: {}\n");
  EXPECT_TRUE(fs::is_directory(run.samples()));
  EXPECT_TRUE(fs::is_directory(run.tensorboard()));
  EXPECT_TRUE(fs::is_directory(run.checkpoints()));
  EXPECT_EQ(run.checkpoint(1200), scratch / "a/b/run/checkpoints/step-00001200");
  EXPECT_EQ(run.sample_file("samples", 40), scratch / "a/b/run/samples/samples-00000040.png");
}

TEST(RunDirectory, EmptyDirectoriesMayBeUsed) {
  const testing::TempDirectory scratch("run-empty");
  EXPECT_NO_THROW(RunDirectory::create(scratch.path(), "x"));
}

TEST(RunDirectory, WhatAKilledStartLeftIsNotInTheWay) {
  const testing::TempDirectory scratch("run-killed");
  write_file(scratch / ".lock", "12345\n");
  write_file(scratch / "config.yaml.tmp-12345", "trainer:\n  num_st");
  EXPECT_EQ(read_file(RunDirectory::create(scratch.path(), "x").config_file()), "x");
}

TEST(RunDirectory, UsedDirectoriesAreRefusedAndLeftAlone) {
  const testing::TempDirectory scratch("run-used");
  write_file(scratch / "thesis.txt", "years of work");
  const std::string message = config_error([&] { RunDirectory::create(scratch.path(), "x"); });
  EXPECT_THAT(message, HasSubstr("--resume"));
  EXPECT_THAT(message, HasSubstr("thesis.txt"));
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch.path()), fs::directory_iterator()), 1);
}

TEST(RunDirectory, AFinishedRunIsNotOverwritten) {
  const testing::TempDirectory scratch("run-again");
  RunDirectory::create(scratch / "run", "first");
  EXPECT_THAT(config_error([&] { RunDirectory::create(scratch / "run", "second"); }), HasSubstr("--resume"));
  EXPECT_EQ(read_file(scratch / "run/config.yaml"), "first");
}

TEST(RunDirectory, OpenNeedsARun) {
  const testing::TempDirectory scratch("run-open");
  EXPECT_THAT(config_error([&] { RunDirectory::open(scratch / "none"); }), HasSubstr("no such directory"));
  EXPECT_THAT(config_error([&] { RunDirectory::open(scratch.path()); }), HasSubstr("no config.yaml"));
}

TEST(RunDirectory, OpenKeepsWhatIsThere) {
  const testing::TempDirectory scratch("run-resume");
  RunDirectory::create(scratch / "run", "config");
  fs::remove(scratch / "run/samples");
  const auto run = RunDirectory::open(scratch / "run");
  EXPECT_EQ(read_file(run.config_file()), "config");
  EXPECT_TRUE(fs::is_directory(run.samples()));
}

// Holds the lock of `root` in another process until destroyed.
class OtherProcess {
 public:
  explicit OtherProcess(const fs::path& root) {
    int ready[2], done[2];
    if (::pipe(ready) != 0 || ::pipe(done) != 0) throw std::runtime_error("pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(done[1]);
      char byte = 0;
      {
        const auto run = RunDirectory::open(root);
        if (::write(ready[1], "x", 1) != 1 || ::read(done[0], &byte, 1) < 0) ::_exit(1);
      }
      ::_exit(0);
    }
    ::close(ready[1]);
    ::close(done[0]);
    char byte = 0;
    if (::read(ready[0], &byte, 1) != 1) throw std::runtime_error("the other process has not come up");
    ::close(ready[0]);
    release_ = done[1];
  }
  ~OtherProcess() {
    ::close(release_);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  int release_ = -1;
};

TEST(RunDirectory, TwoProcessesCannotShareOne) {
  const testing::TempDirectory scratch("run-lock");
  RunDirectory::create(scratch / "run", "config");
  {
    const OtherProcess other(scratch / "run");
    const std::string message = config_error([&] { RunDirectory::open(scratch / "run"); });
    EXPECT_THAT(message, HasSubstr(str("process ", other.pid())));
  }
  EXPECT_NO_THROW(RunDirectory::open(scratch / "run")) << "the lock goes with its process";
}

TEST(RunDirectory, TheLockMovesWithItsOwner) {
  const testing::TempDirectory scratch("run-move");
  auto first = std::make_unique<RunDirectory>(RunDirectory::create(scratch / "run", "config"));
  RunDirectory second = std::move(*first);
  first.reset();
  EXPECT_THROW(RunDirectory::open(scratch / "run"), ConfigError);
  EXPECT_EQ(second.root(), scratch / "run");
}

TEST(RunDirectory, MetricsAreCutOnResume) {
  const testing::TempDirectory scratch("run-cut");
  const auto run = RunDirectory::create(scratch / "run", "config");
  write_file(run.metrics_file(), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
  run.cut_metrics_after(2);
  EXPECT_EQ(read_file(run.metrics_file()), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(RunDirectory, DefaultNameHoldsNameAndTime) {
  const std::string path = RunDirectory::default_path("dvae").string();
  EXPECT_TRUE(std::regex_match(path, std::regex("runs/dvae-[0-9]{8}-[0-9]{6}(-[0-9]+)?"))) << path;
}

}  // namespace
}  // namespace dalle::training

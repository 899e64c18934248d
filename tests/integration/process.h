// Runs the built commands as a user does: a process of its own, with its exit code and what it printed.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dalle/core/files.h"
#include "dalle/core/str.h"

namespace dalle::integration {

namespace fs = std::filesystem;

struct Outcome {
  int exit_code = -1;  // -1: ended by `signal`
  int signal = 0;
  std::string out;
  std::string err;
};

struct Launch {
  fs::path directory;           // working directory; empty: this process's
  uint64_t max_file_bytes = 0;  // 0: no limit; else writes beyond it fail with EFBIG, as on a full disk
  std::vector<std::pair<std::string, std::string>> environment = {};  // added to this process's
};

/// Waits until `done()`; a test failure and false after DALLE_TEST_WAIT_SECONDS, two minutes where that is not set.
inline bool wait_for(const std::string& what, const std::function<bool()>& done) {
  const char* seconds = std::getenv("DALLE_TEST_WAIT_SECONDS");
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::seconds(seconds == nullptr ? 120 : std::stoi(seconds));
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) {
      ADD_FAILURE() << "waited in vain for " << what;
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

/// A command of DALLE_BIN_DIR while it runs. Killed when it is forgotten.
class Process {
 public:
  Process(const std::string& command, const std::vector<std::string>& arguments, const Launch& launch = {}) {
    static int count = 0;
    const fs::path stem = fs::temp_directory_path() / str("dalle-process-", ::getpid(), "-", ++count);
    out_ = str(stem.string(), ".out");
    err_ = str(stem.string(), ".err");
    const std::string program = str(DALLE_BIN_DIR, "/", command);
    std::vector<char*> argv{const_cast<char*>(program.c_str())};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    std::vector<std::string> variables;
    for (const auto& [name, value] : launch.environment) variables.push_back(name + "=" + value);
    std::vector<char*> envp;
    for (char** entry = environ; *entry != nullptr; ++entry) envp.push_back(*entry);
    // Of two entries of a name the first is found.
    for (auto& variable : variables) envp.insert(envp.begin(), variable.data());
    envp.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) start(program, argv.data(), envp.data(), launch);
  }
  ~Process() {
    if (pid_ > 0) {
      kill(SIGKILL);
      wait();
    }
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  /// Nothing where it has ended: no process must be hit by mistake, and -1 stands for all of them.
  void kill(int signal) const {
    if (pid_ > 0) ::kill(pid_, signal);
  }

  bool has_ended() {
    if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
    return pid_ < 0;
  }

  Outcome wait() {
    if (!wait_for("the end of a process", [&] { return has_ended(); })) {
      kill(SIGKILL);
      ::waitpid(pid_, &status_, 0);
      pid_ = -1;
    }
    Outcome outcome{.out = read_file(out_), .err = read_file(err_)};
    if (WIFEXITED(status_)) outcome.exit_code = WEXITSTATUS(status_);
    if (WIFSIGNALED(status_)) outcome.signal = WTERMSIG(status_);
    fs::remove(out_);
    fs::remove(err_);
    return outcome;
  }

 private:
  // In the child: nothing but system calls until exec.
  [[noreturn]] void start(const std::string& program, char** argv, char** envp, const Launch& launch) const {
    const int out = ::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int err = ::open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (out < 0 || err < 0 || ::dup2(out, STDOUT_FILENO) < 0 || ::dup2(err, STDERR_FILENO) < 0) ::_exit(126);
    if (!launch.directory.empty() && ::chdir(launch.directory.c_str()) != 0) ::_exit(126);
    if (launch.max_file_bytes > 0) {
      ::signal(SIGXFSZ, SIG_IGN);  // stays ignored over exec, so that write fails instead
      const rlimit limit{launch.max_file_bytes, launch.max_file_bytes};
      if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(126);
    }
    ::execve(program.c_str(), argv, envp);
    ::_exit(127);
  }

  pid_t pid_ = -1;
  int status_ = 0;
  fs::path out_, err_;
};

inline Outcome run(const std::string& command, const std::vector<std::string>& arguments, const Launch& launch = {}) {
  return Process(command, arguments, launch).wait();
}

/// Runs a command that is expected to do its work.
inline Outcome run_well(const std::string& command, const std::vector<std::string>& arguments) {
  Outcome outcome = run(command, arguments);
  EXPECT_EQ(outcome.exit_code, 0) << command << " " << ::testing::PrintToString(arguments) << "\n" << outcome.err;
  return outcome;
}

/// Names below a folder with their sizes, sorted: equal where nothing was added, removed or rewritten to another length.
inline std::vector<std::string> listing(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    names.push_back(
        str(fs::relative(entry.path(), folder).string(), " ", entry.is_regular_file() ? entry.file_size() : 0));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace dalle::integration

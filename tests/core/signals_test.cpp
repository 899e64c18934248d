#include "dalle/core/signals.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

namespace dalle {
namespace {

void (*current_handler(int signal))(int) {
  struct sigaction action {};
  sigaction(signal, nullptr, &action);
  return action.sa_handler;
}

TEST(Signals, TheFirstSignalAsksToStop) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const StopSignals installed;
    EXPECT_FALSE(stop_requested()) << "a former signal is forgotten";
    ::testing::internal::CaptureStderr();
    std::raise(signal);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_TRUE(stop_requested());
    EXPECT_EQ(stop_signal(), signal);
    EXPECT_EQ(said, "stopping after this step; saving\n");
    EXPECT_EQ(current_handler(SIGTERM), SIG_DFL) << "the second signal, of either kind, acts as usual";
    EXPECT_EQ(current_handler(SIGINT), SIG_DFL);
  }
}

TEST(Signals, FormerHandlersComeBack) {
  const auto former = std::signal(SIGTERM, SIG_IGN);
  {
    const StopSignals installed;
    EXPECT_NE(current_handler(SIGTERM), SIG_IGN);
  }
  EXPECT_EQ(current_handler(SIGTERM), SIG_IGN);
  std::signal(SIGTERM, former);
}

TEST(Signals, TheSecondSignalEndsTheProcess) {
  const pid_t child = ::fork();
  if (child == 0) {
    const StopSignals installed;
    std::raise(SIGINT);
    std::raise(SIGTERM);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGTERM);
}

}  // namespace
}  // namespace dalle

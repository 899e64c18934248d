// Ranks that watch over each other, as processes: one is lost, the others end, and say which and where.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"
#include "dalle/distributed/communicator.h"
#include "support/rank_processes.h"
#include "support/temp_directory.h"

namespace dalle::distributed {
namespace {

using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Clock = std::chrono::steady_clock;

constexpr seconds kTimeout{6};
constexpr int kEndedByWatch = 17;
constexpr const char* kFolder = "DALLE_TEST_FOLDER";

/// A rank whose watch leaves its message in a file and ends the process.
std::unique_ptr<Communicator> join() {
  const std::string folder = std::getenv(kFolder), rank = std::getenv("RANK");
  return init(at::kCPU, seconds(60), Watch{kTimeout, [=](const std::string& message) {
                                             std::ofstream(folder + "/" + rank) << message;
                                             ::_exit(kEndedByWatch);
                                           }});
}

struct Ended {
  int code = -1;  // or -1: by a signal
  int signal = 0;
  std::string message;  // of the watch
};

/// Ranks of a disabled test; what each ended with, in no longer than `limit`. Stopped ones are killed at the end.
std::vector<Ended> ends_of(int size, const std::string& test, seconds limit, std::vector<int> stopped = {}) {
  const testing::TempDirectory folder("heartbeat");
  const int port = testing::free_port();
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    auto variables = testing::rank_variables(rank, size, port);
    variables.emplace_back(kFolder, folder.path().string());
    children.push_back(testing::start_worker("HeartbeatWorker.DISABLED_" + test, variables));
  }
  const auto start = Clock::now();
  std::vector<Ended> ends(children.size());
  const auto take = [&](size_t rank) {
    int status = 0;
    ::waitpid(children[rank], &status, 0);
    if (WIFEXITED(status)) ends[rank].code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) ends[rank].signal = WTERMSIG(status);
    std::stringstream text;
    text << std::ifstream(folder.path() / std::to_string(rank)).rdbuf();
    ends[rank].message = text.str();
  };
  const auto is_stopped = [&](size_t rank) {
    return std::find(stopped.begin(), stopped.end(), static_cast<int>(rank)) != stopped.end();
  };
  for (size_t rank = 0; rank < children.size(); ++rank) {
    if (!is_stopped(rank)) take(rank);
  }
  EXPECT_LT(Clock::now() - start, limit);
  for (const int rank : stopped) {
    ::kill(children[static_cast<size_t>(rank)], SIGKILL);
    take(static_cast<size_t>(rank));
  }
  return ends;
}

/// Some collectives that work, the second of each step begun and then waited for.
void work_together(Communicator& group) {
  for (int step = 0; step < 3; ++step) {
    group.note(str("step ", step, ", forward pass"));
    Tensor x = at::ones({8});
    group.all_reduce_sum(x);
    group.start_all_reduce_sum(x).wait();
  }
  std::this_thread::sleep_for(std::chrono::seconds(1));  // some beats, so that the others know this place
}

Tensor numbers() { return at::ones({1000}); }

/// The rank in LOST does something to itself, the others wait for it in a collective.
void lose_one(int lost, const std::function<void()>& how) {
  const auto group = join();
  work_together(*group);
  if (group->rank() == lost) how();
  Tensor x = numbers();
  group->all_reduce_sum(x);
  group->barrier();
  ADD_FAILURE() << "nobody is there any more";
}

TEST(HeartbeatWorker, DISABLED_LastIsKilled) {
  lose_one(3, [] { ::raise(SIGKILL); });
}
TEST(HeartbeatWorker, DISABLED_FirstIsKilled) {
  lose_one(0, [] { ::raise(SIGKILL); });
}
TEST(HeartbeatWorker, DISABLED_LastIsStopped) {
  lose_one(1, [] { ::raise(SIGSTOP); });
}
TEST(HeartbeatWorker, DISABLED_FirstIsStopped) {
  lose_one(0, [] { ::raise(SIGSTOP); });
}
TEST(HeartbeatWorker, DISABLED_OneHangs) {
  lose_one(1, [] { ::sleep(60); });
}

/// The others wait for rank 0 without a limit of time.
TEST(HeartbeatWorker, DISABLED_FirstIsKilledInItsOwnTime) {
  const auto group = join();
  work_together(*group);
  group->note("step 3, saving", Pace::kOpenEnded);
  if (group->rank() == 0) {
    ::sleep(1);
    ::raise(SIGKILL);
  }
  group->await(0);
  ADD_FAILURE() << "nobody is there any more";
}

TEST(HeartbeatWorker, DISABLED_OneFails) {
  const auto group = join();
  work_together(*group);
  tell_failure(*group, [&] {
    if (group->rank() == 1) throw DataError("shard-7.tar: cannot read");
    group->barrier();
  });
}

/// Every rank comes to the same error: each is to end by its own, though rank 0, which serves the store, goes first.
TEST(HeartbeatWorker, DISABLED_AllFailAlike) {
  const auto group = join();
  work_together(*group);
  std::string text;
  try {
    tell_failure(*group, [&] { require_agreement(*group, {{"config", str(group->rank()), ""}}); });
  } catch (const ConfigError& error) {
    text = error.what();
  }
  EXPECT_THAT(text, HasSubstr("rank 1: expected config 0"));
}

/// Rank 1 takes its time, more than the timeout in all, but gets on; rank 0 then does something alone that takes longer.
TEST(HeartbeatWorker, DISABLED_SlowOnes) {
  const auto group = join();
  for (int pass = 0; pass < 4 && group->rank() == 1; ++pass) {
    group->note(str("pass ", pass));
    ::sleep(2);
  }
  Tensor x = numbers();
  group->all_reduce_sum(x);
  group->note("drawing", Pace::kOpenEnded);
  if (group->rank() == 0) ::sleep(7);
  group->await(0);
  group->barrier();
  group->leave();
  if (group->rank() == 1) ::sleep(1);  // still there when rank 0 has gone, and with it the store
}

void expect_message(const Ended& end, const ::testing::Matcher<std::string>& message) {
  EXPECT_EQ(end.code, kEndedByWatch) << "signal " << end.signal;
  EXPECT_THAT(end.message, message);
}

TEST(Heartbeat, AKilledRankEndsTheOthersWhoNameItAndItsPlace) {
  const auto ends = ends_of(4, "LastIsKilled", seconds(20));
  EXPECT_EQ(ends[3].signal, SIGKILL);
  for (int rank = 0; rank < 3; ++rank) {
    expect_message(ends[static_cast<size_t>(rank)],
                   AllOf(StartsWith("rank 3 was lost"), HasSubstr("last seen at step 2, forward pass")));
  }
}

TEST(Heartbeat, TheRankThatServesTheStoreMayBeKilled) {
  for (const char* test : {"FirstIsKilled", "FirstIsKilledInItsOwnTime"}) {
    const auto ends = ends_of(2, test, seconds(20));
    EXPECT_EQ(ends[0].signal, SIGKILL);
    expect_message(ends[1], AllOf(StartsWith("rank 0 was lost"), HasSubstr("last seen at ")));
  }
}

TEST(Heartbeat, AStoppedRankEndsTheOthers) {
  const auto ends = ends_of(2, "LastIsStopped", seconds(20), {1});
  expect_message(ends[0], AllOf(StartsWith("rank 1 was lost: no sign of life for"), HasSubstr("last seen at step 2")));
  const auto served = ends_of(2, "FirstIsStopped", seconds(20), {0});
  expect_message(served[1], AllOf(StartsWith("rank 0 was lost: the store that it serves"), HasSubstr("last seen at")));
}

TEST(Heartbeat, AHungRankEndsAllThoughItsHeartbeatLives) {
  const auto ends = ends_of(3, "OneHangs", seconds(20));
  for (const auto& end : ends) {
    expect_message(end, StartsWith("rank 1 hangs: it has been at step 2, forward pass for"));
  }
}

TEST(Heartbeat, AFailedRanksErrorIsWhatTheOthersSay) {
  const auto ends = ends_of(3, "OneFails", seconds(20));
  EXPECT_EQ(ends[1].code, 1);
  EXPECT_EQ(ends[1].message, "") << "by its own error, not by its watch";
  for (const size_t rank : {0, 2}) {
    expect_message(ends[rank],
                   AllOf(StartsWith("rank 1 failed at step 2, forward pass"), HasSubstr("shard-7.tar: cannot read")));
  }
}

TEST(Heartbeat, AnErrorOfAllIsEveryonesOwn) {
  for (const auto& end : ends_of(3, "AllFailAlike", seconds(20))) EXPECT_EQ(end.code, 0) << end.message;
}

/// What a rank says whose store nobody serves, or a process that accepts and then says nothing, as one that is stopped.
std::string message_without_store(int port) {
  const testing::Environment environment(testing::rank_variables(1, 2, port));
  const auto start = Clock::now();
  std::string message;
  try {
    init(at::kCPU, seconds(60), Watch{kTimeout, [](const std::string&) { ADD_FAILURE() << "no watch yet"; }});
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT_LT(Clock::now() - start, kTimeout);
  return message;
}

TEST(Heartbeat, AFirstRankThatDoesNotComeIsNamed) {
  const int port = testing::free_port();
  const auto message = AllOf(HasSubstr("rank 1: expected a store that rank 0 serves"), HasSubstr(std::to_string(port)));
  EXPECT_THAT(message_without_store(port), message);
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener, 8), 0);
  EXPECT_THAT(message_without_store(port), AllOf(message, HasSubstr("does not answer")));
  ::close(listener);
}

TEST(Heartbeat, SlowRanksAreNotBlamed) {
  for (const auto& end : ends_of(2, "SlowOnes", seconds(60))) EXPECT_EQ(end.code, 0) << end.message;
}

}  // namespace
}  // namespace dalle::distributed

// The variables of each launcher, as it sets them, and what is refused.
#include "dalle/distributed/launch_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "dalle/core/error.h"
#include "support/thrown_message.h"

namespace dalle::distributed {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::message_of;
using Values = std::map<std::string, std::string>;

LaunchEnvironment read(const Values& values) {
  return read_launch_environment([&](const char* name) -> const char* {
    const auto found = values.find(name);
    return found == values.end() ? nullptr : found->second.c_str();
  });
}

std::string refusal(const Values& values) {
  return message_of<ConfigError>([&] { read(values); });
}

/// `values` with some changed, or taken away where the new value is "".
Values with(Values values, const Values& changes) {
  for (const auto& [name, value] : changes) values[name] = value;
  return values;
}

const Values kPlain{{"RANK", "2"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "host"}, {"MASTER_PORT", "29500"}};

const Values kTorchrun = with(kPlain, {{"LOCAL_RANK", "0"},
                                       {"LOCAL_WORLD_SIZE", "2"},
                                       {"TORCHELASTIC_RUN_ID", "none"},
                                       {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                       {"TORCHELASTIC_RESTART_COUNT", "3"}});

const Values kSlurm{{"SLURM_JOB_ID", "77"},
                    {"SLURM_STEP_ID", "0"},
                    {"SLURM_PROCID", "3"},
                    {"SLURM_NTASKS", "8"},
                    {"SLURM_LOCALID", "1"},
                    {"SLURM_STEP_TASKS_PER_NODE", "2(x4)"},
                    {"SLURM_JOB_NODELIST", "n[07-10]"},
                    {"SLURM_STEP_NUM_TASKS", "8"}};

const Values kOpenMpi{{"OMPI_COMM_WORLD_RANK", "1"},
                      {"OMPI_COMM_WORLD_SIZE", "2"},
                      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                      {"PMIX_NAMESPACE", "prterun-host-123@1"}};

TEST(LaunchEnvironment, OneProcessWithoutALauncher) {
  for (const Values& values : {Values{}, Values{{"WORLD_SIZE", "1"}}, Values{{"MASTER_PORT", "29500"}},
                               Values{{"RANK", ""}, {"WORLD_SIZE", ""}}}) {
    const auto environment = read(values);
    EXPECT_EQ(environment.rank, 0);
    EXPECT_EQ(environment.world_size, 1);
  }
  EXPECT_EQ(read({}).launcher, Launcher::kNone);
}

TEST(LaunchEnvironment, PlainVariables) {
  const auto environment = read(with(kPlain, {{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}}));
  EXPECT_EQ(environment.launcher, Launcher::kVariables);
  EXPECT_EQ(environment.rank, 2);
  EXPECT_EQ(environment.world_size, 4);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.local_size, 2);
  EXPECT_EQ(environment.address, "host");
  EXPECT_EQ(environment.port, 29500);
  EXPECT_FALSE(environment.store_is_served);
  EXPECT_EQ(environment.key_prefix, "");
  EXPECT_FALSE(read(kPlain).local_rank.has_value());
}

TEST(LaunchEnvironment, TorchrunsStoreIsItsOwn) {
  const auto environment = read(kTorchrun);
  EXPECT_EQ(environment.launcher, Launcher::kTorchrun);
  EXPECT_EQ(environment.rank, 2);
  EXPECT_TRUE(environment.store_is_served);
  EXPECT_EQ(environment.key_prefix, "dalle/attempt_3");
  EXPECT_NE(read(with(kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "4"}})).key_prefix, environment.key_prefix);
  EXPECT_FALSE(read(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).store_is_served);
  // torchrun under srun, one per machine: the machine's number is not the rank.
  EXPECT_EQ(read(with(kTorchrun, {{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}})).rank, 2);
}

TEST(LaunchEnvironment, OpenMpi) {
  const auto environment = read(kOpenMpi);
  EXPECT_EQ(environment.launcher, Launcher::kOpenMpi);
  EXPECT_EQ(environment.rank, 1);
  EXPECT_EQ(environment.world_size, 2);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.address, "127.0.0.1");
  EXPECT_GE(environment.port, 20000);
  EXPECT_EQ(read(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}})).port, environment.port);
  EXPECT_NE(read(with(kOpenMpi, {{"PMIX_NAMESPACE", "prterun-host-124@1"}})).port, environment.port);
  EXPECT_THAT(refusal(with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}})),
              AllOf(HasSubstr("MASTER_ADDR"), HasSubstr("mpirun -x")));
}

TEST(LaunchEnvironment, Slurm) {
  const auto environment = read(kSlurm);
  EXPECT_EQ(environment.launcher, Launcher::kSlurm);
  EXPECT_EQ(environment.rank, 3);
  EXPECT_EQ(environment.world_size, 8);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.local_size, 2);
  EXPECT_EQ(environment.address, "n07");
  EXPECT_EQ(read(with(kSlurm, {{"SLURM_PROCID", "0"}})).port, environment.port);
  EXPECT_NE(read(with(kSlurm, {{"SLURM_JOB_ID", "78"}})).port, environment.port);
  EXPECT_NE(read(with(kSlurm, {{"SLURM_RESTART_COUNT", "1"}})).port, environment.port);
  EXPECT_EQ(read(with(kSlurm, {{"SLURM_JOB_NODELIST", "n07"}})).address, "127.0.0.1");
  EXPECT_EQ(read(with(kSlurm, {{"MASTER_ADDR", "other"}, {"MASTER_PORT", "5"}})).address, "other");
  EXPECT_EQ(read(with(kSlurm, {{"MASTER_PORT", "5"}})).port, 5);
  // A step smaller than its job, on other hosts.
  const auto step = read(with(kSlurm, {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_STEP_NODELIST", "n[09-10]"}}));
  EXPECT_EQ(step.world_size, 4);
  EXPECT_EQ(step.address, "n09");
  EXPECT_FALSE(read(with(kSlurm, {{"SLURM_STEP_TASKS_PER_NODE", "3,5"}})).local_size.has_value());
}

TEST(LaunchEnvironment, ABatchScriptIsOneProcess) {
  EXPECT_EQ(read(with(kSlurm, {{"SLURM_STEP_ID", ""}})).world_size, 1);
}

TEST(LaunchEnvironment, WhatIsHalfSetIsNamed) {
  EXPECT_THAT(refusal({{"RANK", "0"}}), HasSubstr("WORLD_SIZE"));
  EXPECT_THAT(refusal(with(kPlain, {{"RANK", ""}})), HasSubstr("environment variable RANK"));
  EXPECT_THAT(refusal(with(kPlain, {{"MASTER_ADDR", ""}})), HasSubstr("MASTER_ADDR"));
  EXPECT_THAT(refusal(with(kPlain, {{"MASTER_PORT", ""}})), HasSubstr("MASTER_PORT"));
  EXPECT_THAT(refusal(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", ""}})),
              HasSubstr("TORCHELASTIC_USE_AGENT_STORE"));
  EXPECT_THAT(refusal(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", ""}})), HasSubstr("OMPI_COMM_WORLD_RANK"));
  EXPECT_THAT(refusal(with(kSlurm, {{"SLURM_JOB_NODELIST", ""}})), HasSubstr("SLURM_JOB_NODELIST"));
  EXPECT_THAT(refusal(with(kSlurm, {{"SLURM_JOB_ID", ""}})), HasSubstr("SLURM_JOB_ID"));
}

TEST(LaunchEnvironment, WhatMakesNoSenseIsNamed) {
  EXPECT_THAT(refusal(with(kPlain, {{"RANK", "4"}})),
              AllOf(HasSubstr("RANK: expected an integer from 0 to 3"), HasSubstr("'4'")));
  EXPECT_THAT(refusal(with(kPlain, {{"RANK", "1 "}})), HasSubstr("'1 '"));
  EXPECT_THAT(refusal(with(kPlain, {{"WORLD_SIZE", "two"}})), HasSubstr("WORLD_SIZE"));
  EXPECT_THAT(refusal(with(kPlain, {{"MASTER_PORT", "65536"}})), HasSubstr("MASTER_PORT"));
  EXPECT_THAT(refusal(with(kPlain, {{"LOCAL_RANK", "2"}, {"LOCAL_WORLD_SIZE", "2"}})), HasSubstr("LOCAL_RANK"));
  EXPECT_THAT(refusal(with(kSlurm, {{"SLURM_PROCID", "8"}})), HasSubstr("SLURM_PROCID"));
}

TEST(LaunchEnvironment, LaunchersThatContradictEachOtherAreRefused) {
  const auto of_both =
      refusal(with(kOpenMpi, {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "1"}}));
  EXPECT_THAT(of_both, AllOf(HasSubstr("RANK: expected 1, as OMPI_COMM_WORLD_RANK says"), HasSubstr("got 0")));
  EXPECT_THAT(refusal(with(kSlurm, {{"RANK", "0"}, {"WORLD_SIZE", "8"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "1"}})),
              HasSubstr("SLURM_PROCID"));
  // RANK made from Slurm's own, and a smaller group within a Slurm step.
  EXPECT_EQ(read(with(kSlurm, {{"RANK", "3"}, {"WORLD_SIZE", "8"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "1"}})).rank,
            3);
  EXPECT_EQ(read(with(kSlurm, {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "1"}})).rank,
            0);
}

TEST(LaunchEnvironment, ListsOfHosts) {
  EXPECT_THAT(expand_host_list("one"), ElementsAre("one"));
  EXPECT_THAT(expand_host_list("a,b-1"), ElementsAre("a", "b-1"));
  EXPECT_THAT(expand_host_list("node[003-005,12],other"),
              ElementsAre("node003", "node004", "node005", "node12", "other"));
  EXPECT_THAT(expand_host_list("n[8-11]"), ElementsAre("n8", "n9", "n10", "n11"));
  EXPECT_THAT(expand_host_list("r[1-2]n[1,3]x"), ElementsAre("r1n1x", "r1n3x", "r2n1x", "r2n3x"));
  for (const char* bad : {"", "a,", "n[", "n[1", "n]1", "n[[1]]", "n[]", "n[a-b]", "n[3-1]", "n[1-99999999999]"}) {
    EXPECT_THROW(expand_host_list(bad), ConfigError) << bad;
  }
}

TEST(LaunchEnvironment, ARestartIsWhatTheLauncherCountsAsOne) {
  const auto is_restart_with = [](const Values& values) {
    return is_restart_by([&](const char* name) -> const char* {
      const auto found = values.find(name);
      return found == values.end() ? nullptr : found->second.c_str();
    });
  };
  EXPECT_TRUE(is_restart_with(kTorchrun));
  EXPECT_FALSE(is_restart_with(with(kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "0"}})));
  EXPECT_FALSE(is_restart_with(kSlurm));
  EXPECT_FALSE(is_restart_with(with(kSlurm, {{"SLURM_RESTART_COUNT", "0"}})));
  EXPECT_TRUE(is_restart_with(with(kSlurm, {{"SLURM_RESTART_COUNT", "1"}})));
  EXPECT_FALSE(is_restart_with({}));
  EXPECT_THAT(message_of<ConfigError>([&] {
                is_restart_with({{"SLURM_RESTART_COUNT", "once"}});
              }),
              HasSubstr("SLURM_RESTART_COUNT"));
}

}  // namespace
}  // namespace dalle::distributed

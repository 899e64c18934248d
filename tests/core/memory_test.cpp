#include "dalle/core/memory.h"

#include <gtest/gtest.h>

#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle {
namespace {

constexpr int64_t kGib = int64_t{1} << 30;

// A machine with 8 GiB available, and files of control groups.
class Memory : public ::testing::Test {
 protected:
  void SetUp() override { put("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nBuffers: 1 kB\n"); }
  void put(const std::string& name, const std::string& content) {
    std::filesystem::create_directories((root_ / name).parent_path());
    write_file(root_ / name, content);
  }
  int64_t available() const { return available_memory_bytes(root_.path()); }
  testing::TempDirectory root_{"memory"};
};

TEST_F(Memory, IsWhatTheMachineHas) {
  EXPECT_EQ(available(), 8 * kGib);
  put("proc/self/cgroup", "0::/jobs/mine\n");
  put("sys/fs/cgroup/jobs/mine/memory.max", "max\n");
  put("sys/fs/cgroup/jobs/mine/memory.current", "1000\n");
  EXPECT_EQ(available(), 8 * kGib) << "a group without a limit";
}

TEST_F(Memory, IsWhatTheGroupsLeave) {
  put("proc/self/cgroup", "0::/jobs/mine\n");
  put("sys/fs/cgroup/jobs/mine/memory.max", std::to_string(6 * kGib));
  put("sys/fs/cgroup/jobs/mine/memory.current", std::to_string(2 * kGib));
  EXPECT_EQ(available(), 4 * kGib);
  put("sys/fs/cgroup/jobs/memory.max", std::to_string(5 * kGib));
  put("sys/fs/cgroup/jobs/memory.current", std::to_string(4 * kGib));
  EXPECT_EQ(available(), kGib) << "the group above has less";
  put("sys/fs/cgroup/jobs/memory.current", std::to_string(6 * kGib));
  EXPECT_EQ(available(), 0) << "over the limit";
}

TEST_F(Memory, FilesThatWereReadAreNoUse) {
  put("proc/self/cgroup", "0::/\n");
  put("sys/fs/cgroup/memory.max", std::to_string(3 * kGib));
  put("sys/fs/cgroup/memory.current", std::to_string(3 * kGib - 1));
  put("sys/fs/cgroup/memory.stat", "anon 1\nfile 2147483649\ninactive_file 2147483647\nactive_file 2\n");
  EXPECT_EQ(available(), 2 * kGib);
  put("proc/self/cgroup", "4:memory:/b\n");
  put("sys/fs/cgroup/memory/b/memory.limit_in_bytes", std::to_string(3 * kGib));
  put("sys/fs/cgroup/memory/b/memory.usage_in_bytes", std::to_string(2 * kGib));
  put("sys/fs/cgroup/memory/b/memory.stat", "inactive_file 5\ntotal_inactive_file 1073741824\n");
  EXPECT_EQ(available(), 2 * kGib);
}

TEST_F(Memory, AContainersOwnRootCounts) {
  put("proc/self/cgroup", "0::/\n");
  put("sys/fs/cgroup/memory.max", std::to_string(3 * kGib));
  put("sys/fs/cgroup/memory.current", std::to_string(kGib));
  EXPECT_EQ(available(), 2 * kGib);
}

TEST_F(Memory, KnowsTheFirstVersionOfGroups) {
  put("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:hugetlb,memory:/b\n0::/c\n");
  put("sys/fs/cgroup/memory/b/memory.limit_in_bytes", std::to_string(3 * kGib));
  put("sys/fs/cgroup/memory/b/memory.usage_in_bytes", std::to_string(kGib));
  EXPECT_EQ(available(), 2 * kGib);
}

TEST_F(Memory, KnowsNothingWhereNothingIsSaid) {
  EXPECT_EQ(available_memory_bytes(root_ / "nowhere"), 0);
  EXPECT_GT(available_memory_bytes(), 0) << "this machine";
}

}  // namespace
}  // namespace dalle

// Files that are whole or absent, also when the disk is full.
#include "dalle/core/files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>

#include "dalle/core/error.h"
#include "support/temp_directory.h"

namespace dalle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  return names;
}

/// Runs `body` in a child whose files may not grow beyond `bytes`, as on a full disk; its exit status, -1 if it was killed.
int with_file_limit(rlim_t bytes, const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int status = 99;
    try {
      status = body();
    } catch (...) {
      status = 98;
    }
    ::_exit(status);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(ReadFile, WholeContentWithAnyBytes) {
  const testing::TempDirectory scratch("files-read");
  std::string content;
  for (int i = 0; i < 200'000; ++i) content += static_cast<char>(i * i);  // several buffers long
  write_file(scratch / "x", content);
  EXPECT_EQ(read_file(scratch / "x"), content);
  write_file(scratch / "x", "");
  EXPECT_EQ(read_file(scratch / "x"), "");
}

TEST(ReadFile, AMissingFileIsNamedWithTheReason) {
  try {
    read_file("/nowhere/x.yaml");
    FAIL();
  } catch (const FileError& error) {
    EXPECT_THAT(error.what(), HasSubstr("/nowhere/x.yaml: No such file"));
  }
  EXPECT_THROW(read_file(fs::temp_directory_path()), FileError);  // a directory
}

TEST(AtomicFile, OldContentStaysUntilCommit) {
  const testing::TempDirectory scratch("files-atomic");
  write_file(scratch / "x", "old");
  {
    AtomicFile file(scratch / "x");
    file.write("ne");
    file.write(std::as_bytes(std::span("w", 1)));
    EXPECT_EQ(read_file(scratch / "x"), "old");
    file.commit();
    EXPECT_EQ(read_file(scratch / "x"), "new");
  }
  EXPECT_THAT(names_in(scratch.path()), ::testing::ElementsAre("x"));
}

TEST(AtomicFile, WithoutCommitNothingIsLeft) {
  const testing::TempDirectory scratch("files-uncommitted");
  { AtomicFile(scratch / "x").write("half"); }
  EXPECT_TRUE(names_in(scratch.path()).empty());
  write_file(scratch / "x", "old");
  { AtomicFile(scratch / "x").write("half"); }
  EXPECT_EQ(read_file(scratch / "x"), "old");
  EXPECT_THAT(names_in(scratch.path()), ::testing::ElementsAre("x"));
}

TEST(AtomicFile, AFullDiskKeepsTheOldFileAndLeavesNoRest) {
  const testing::TempDirectory scratch("files-full");
  write_file(scratch / "x", "old");
  const int status = with_file_limit(1000, [&] {
    try {
      write_file(scratch / "x", std::string(5000, 'n'));
    } catch (const FileError& error) {
      return std::string(error.what()).find((scratch / "x").string()) != std::string::npos ? 7 : 8;
    }
    return 0;
  });
  EXPECT_EQ(status, 7);
  EXPECT_EQ(read_file(scratch / "x"), "old");
  EXPECT_THAT(names_in(scratch.path()), ::testing::ElementsAre("x"));
  // The limit itself is no obstacle to a file that fits.
  EXPECT_EQ(with_file_limit(1000, [&] { return write_file(scratch / "x", "fits"), 0; }), 0);
  EXPECT_EQ(read_file(scratch / "x"), "fits");
}

TEST(AtomicFile, AFolderThatIsNotThereIsAFileError) {
  const testing::TempDirectory scratch("files-folder");
  EXPECT_THROW(write_file(scratch / "no" / "x", "text"), FileError);
  fs::create_directories(scratch / "taken" / "inside");
  EXPECT_THROW(write_file(scratch / "taken", "text"), FileError);  // cannot be renamed over a folder
  EXPECT_THAT(names_in(scratch.path()), ::testing::ElementsAre("taken"));
}

TEST(AppendLine, KeepsWhatIsThereAndEndsEachLine) {
  const testing::TempDirectory scratch("files-append");
  append_line(scratch / "m.jsonl", "{\"a\": 1}");
  append_line(scratch / "m.jsonl", "");
  append_line(scratch / "m.jsonl", "b");
  EXPECT_EQ(read_file(scratch / "m.jsonl"), "{\"a\": 1}\n\nb\n");
  EXPECT_THROW(append_line(scratch / "no" / "m.jsonl", "x"), FileError);
}

TEST(AppendLine, AFullDiskIsAFileErrorAndEarlierLinesStay) {
  const testing::TempDirectory scratch("files-append-full");
  append_line(scratch / "m.jsonl", "first");
  const int status = with_file_limit(6, [&] {
    try {
      append_line(scratch / "m.jsonl", "second");
    } catch (const FileError&) {
      return 7;
    }
    return 0;
  });
  EXPECT_EQ(status, 7);
  EXPECT_EQ(read_file(scratch / "m.jsonl"), "first\n");
}

TEST(Disk, FreeBytesAndSync) {
  const testing::TempDirectory scratch("files-disk");
  EXPECT_GT(free_disk_bytes(scratch.path()), 0U);
  EXPECT_THROW(free_disk_bytes(scratch / "no"), FileError);
  EXPECT_NO_THROW(sync_directory(scratch.path()));
  EXPECT_THROW(sync_directory(scratch / "no"), FileError);
}

}  // namespace
}  // namespace dalle

#include "dalle/core/file_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "support/temp_directory.h"
#include "support/thrown_message.h"

namespace dalle {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(FileLock, OneAtATimeHoldsIt) {
  const testing::TempDirectory folder("lock");
  std::optional<FileLock> first(std::in_place, folder / ".lock", "--out x", "wait");
  EXPECT_THAT(testing::message_of<ConfigError>([&] { FileLock(folder / ".lock", "--out x", "wait"); }),
              AllOf(HasSubstr("--out x: expected a directory that no other process writes"),
                    HasSubstr(str("locked by process ", ::getpid())), HasSubstr("wait")));
  FileLock moved = std::move(*first);
  first.reset();
  EXPECT_THROW(FileLock(folder / ".lock", "", ""), ConfigError) << "what was moved from holds nothing";
  moved = FileLock();
  EXPECT_NO_THROW(FileLock(folder / ".lock", "", ""));
}

TEST(FileLock, WhatCannotBeOpenedIsNamed) {
  EXPECT_THAT(testing::message_of<FileError>([] { FileLock("/proc/none/.lock", "", ""); }),
              HasSubstr("/proc/none/.lock"));
}

}  // namespace
}  // namespace dalle

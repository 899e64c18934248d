#include "dalle/data/tar_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/tar_files.h"
#include "support/temp_directory.h"

namespace dalle::data {
namespace {

using ::testing::HasSubstr;
using testing::TempDirectory;

TEST(TarReader, OffsetsLeadToTheContents) {
  const TempDirectory folder("tar-reader");
  const testing::TarFiles files{
      {"a", "one"}, {std::string(150, 'l'), std::string(600, 'x')}, {"empty", ""}, {"c", "three"}};
  write_file(folder / "t.tar", testing::make_tar(files));
  std::vector<TarEntry> entries;
  const TarWalk walk = walk_tar(
      folder / "t.tar", [](std::string_view name) { return name == "a"; },
      [&](TarEntry&& entry) { entries.push_back(std::move(entry)); });
  EXPECT_EQ(walk.problem, "");
  EXPECT_FALSE(walk.compressed);
  EXPECT_EQ(walk.num_entries, 4);
  ASSERT_EQ(entries.size(), files.size());
  for (size_t i = 0; i < files.size(); ++i) {
    EXPECT_EQ(entries[i].name, files[i].first);
    EXPECT_EQ(read_range(folder / "t.tar", entries[i].offset, entries[i].size), files[i].second);
    EXPECT_EQ(entries[i].content, i == 0 ? "one" : "");  // asked for by name only
  }
}

TEST(TarReader, SaysHowManyBytesAreMissing) {
  const TempDirectory folder("tar-reader");
  write_file(folder / "t.tar",
             testing::make_tar({{"a", "one"}, {"b", std::string(600, 'x')}}).substr(0, 1024 + 512 + 250));
  int64_t missing = 0;
  const TarWalk walk = walk_tar(
      folder / "t.tar", [](std::string_view) { return true; }, [&](TarEntry&& entry) { missing += entry.missing; });
  EXPECT_EQ(missing, 350);
  EXPECT_THAT(walk.problem, HasSubstr("350 bytes"));
}

TEST(TarReader, RangesPastTheEndAreFileErrors) {
  const TempDirectory folder("tar-reader");
  write_file(folder / "t", "0123456789");
  EXPECT_EQ(read_range(folder / "t", 3, 4), "3456");
  EXPECT_THROW(read_range(folder / "t", 8, 4), FileError);
  EXPECT_THROW(read_range(folder / "none", 0, 1), FileError);
}

}  // namespace
}  // namespace dalle::data

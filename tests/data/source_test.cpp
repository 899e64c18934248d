#include "dalle/data/source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/tar_files.h"
#include "support/temp_directory.h"

namespace dalle::data {
namespace {

using ::testing::ElementsAre;
using testing::TempDirectory;

TEST(ExpandShards, RangesListsGlobsAndFolders) {
  const TempDirectory folder("tar");
  for (const char* name : {"s-08.tar", "s-09.tar", "s-10.tar", "t-a.tar", "t-b.tar"}) write_file(folder / name, "x");
  const auto names = [&](const std::string& pattern) {
    std::vector<std::string> found;
    for (const auto& path : expand_shards(folder / pattern)) found.push_back(path.filename().string());
    return found;
  };
  EXPECT_THAT(names("s-{08..10}.tar"), ElementsAre("s-08.tar", "s-09.tar", "s-10.tar"));
  EXPECT_THAT(names("{t-b,s-09}.tar"), ElementsAre("t-b.tar", "s-09.tar"));
  std::filesystem::create_directory(folder / "t-c.tar");  // a pattern asks for files
  EXPECT_THAT(names("t-?.tar"), ElementsAre("t-a.tar", "t-b.tar"));
  EXPECT_THAT(names("{s,t}-*.tar"), ElementsAre("s-08.tar", "s-09.tar", "s-10.tar", "t-a.tar", "t-b.tar"));
  EXPECT_THAT(names("."), ElementsAre("s-08.tar", "s-09.tar", "s-10.tar", "t-a.tar", "t-b.tar"));
  EXPECT_THAT(names("s-10.tar"), ElementsAre("s-10.tar"));
}

TEST(ExpandShards, MissingOnesAreConfigErrors) {
  const TempDirectory folder("tar");
  write_file(folder / "s-0.tar", "x");
  std::filesystem::create_directory(folder / "empty");
  for (const char* pattern : {"none.tar", "s-{0..1}.tar", "x*.tar", "empty", "s-{a..b}.tar", "s-{3..1}.tar"}) {
    EXPECT_THROW(expand_shards(folder / pattern), ConfigError) << pattern;
  }
  EXPECT_THROW(expand_shards(""), ConfigError);
}

TEST(OpenSource, ReadsSeveralShardsAsOne) {
  const TempDirectory folder("source");
  write_file(folder / "s-0.tar",
             testing::make_tar({{"a.png", "pa"}, {"a.txt", "ta"}, {"b.png", "pb"}, {"b.txt", "tb"}}));
  write_file(folder / "s-1.tar", testing::make_tar({{"a.png", "pc"}, {"a.txt", "tc"}}));
  const auto source = open_source({.path = folder / "s-{0..1}.tar"});
  ASSERT_EQ(source->size(), 3);
  EXPECT_EQ(source->read(2).picture, "pc");  // keys belong to their shard
  EXPECT_EQ(source->captions(2).front(), "tc");
  EXPECT_EQ(open_source({.path = folder / "*.tar", .max_samples = 1})->size(), 1);
}

}  // namespace
}  // namespace dalle::data

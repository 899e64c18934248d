#include "dalle/data/dataset.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "support/memory_source.h"

namespace dalle::data {
namespace {

using testing::MemorySource;

TEST(Dataset, JoinsItsSources) {
  std::vector<std::unique_ptr<Source>> sources;
  sources.push_back(std::make_unique<MemorySource>(3));
  sources.push_back(std::make_unique<MemorySource>(2));
  const Dataset dataset(std::move(sources));
  EXPECT_EQ(dataset.size(), 5);
  EXPECT_EQ(dataset.read(2).key, "key2");
  EXPECT_EQ(dataset.read(3).key, "key0");
  EXPECT_EQ(dataset.captions(4)[0], "caption 1");
  EXPECT_EQ(dataset.all_captions().size(), 15u);
  EXPECT_THROW(dataset.read(5), c10::ValueError);
  EXPECT_THROW(Dataset(std::vector<SourceConfig>{}), ConfigError);
  EXPECT_THROW(Dataset(std::vector<SourceConfig>{{.path = "/nonexistent.tar"}}), ConfigError);
}

}  // namespace
}  // namespace dalle::data

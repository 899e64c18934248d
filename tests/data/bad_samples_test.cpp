#include "dalle/data/bad_samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "support/thrown_message.h"

namespace dalle::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(BadSamples, TheShareCountsOnceThereAreMoreThanFive) {
  BadSampleJudge judge(0.1);
  EXPECT_NO_THROW(judge.add(9, {{0, ""}, {1, ""}, {2, ""}, {3, ""}, {4, "tar: four"}})) << "a few say nothing";
  EXPECT_EQ(judge.num_bad(), 5);
  EXPECT_THAT(testing::message_of<DataError>([&] {
                judge.add(1, {{19, "tar: nineteen"}});
              }),
              AllOf(HasSubstr("at most 10 %"), HasSubstr("6 of 10; the last: tar: nineteen")));
  BadSampleJudge lenient(0.1);
  lenient.add(54, {});
  EXPECT_NO_THROW(lenient.add(6, {{1, ""}, {2, ""}, {3, ""}, {4, ""}, {5, ""}, {6, ""}})) << "not above the share";
  EXPECT_EQ(lenient.num_looked_at(), 60);
}

TEST(BadSamples, NoneMeansNone) {
  BadSampleJudge judge(0);
  judge.add(100, {});
  EXPECT_THAT(testing::message_of<DataError>([&] {
                judge.add(1, {{100, "tar: x"}});
              }),
              AllOf(HasSubstr("expected none unusable (max_bad_share: 0)"), HasSubstr("1 of 101")));
}

TEST(BadSamples, ThoseOfAnEarlierProcessCount) {
  BadSampleJudge judge(0.1);
  judge.add_earlier(100, 10);
  EXPECT_NO_THROW(judge.add(10, {{100, ""}}));
  EXPECT_THROW(judge.add(1, {{110, ""}}), DataError);
  EXPECT_EQ(judge.num_bad(), 12);
  EXPECT_EQ(judge.num_looked_at(), 111);
}

}  // namespace
}  // namespace dalle::data

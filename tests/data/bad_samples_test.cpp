#include "dalle/data/bad_samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "support/thrown_message.h"

namespace dalle::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(BadSamples, TheShareIsJudgedFromTheTwentiethOn) {
  BadSampleJudge judge(0.1);
  EXPECT_NO_THROW(judge.add(19, {{3, "tar: three"}, {4, "tar: four"}, {5, "tar: five"}}));
  EXPECT_EQ(judge.num_bad(), 3);
  EXPECT_THAT(testing::message_of<DataError>([&] {
                judge.add(1, {{19, "tar: nineteen"}});
              }),
              AllOf(HasSubstr("at most 10 %"), HasSubstr("4 of 20; the last: tar: nineteen")));
  BadSampleJudge lenient(0.2);
  EXPECT_NO_THROW(lenient.add(20, {{1, ""}, {2, ""}, {3, ""}, {4, ""}})) << "not above the share";
  EXPECT_EQ(lenient.num_looked_at(), 20);
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

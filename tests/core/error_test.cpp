// Messages with their four parts, and the guess at what a user meant.
#include "dalle/core/error.h"

#include <gtest/gtest.h>

namespace dalle {
namespace {

TEST(Error, MessageHasPlaceExpectedGotAndHint) {
  EXPECT_EQ(to_string({"a.yaml:3 (lr)", "a number", "'many'", "write 1e-4"}),
            "a.yaml:3 (lr): expected a number, got 'many'\n  hint: write 1e-4");
}

TEST(Error, EmptyPartsAreLeftOut) {
  EXPECT_EQ(to_string({"here", "a file", "", ""}), "here: expected a file");
  EXPECT_EQ(to_string({"cannot write x", "", "disk full", ""}), "cannot write x: disk full");
  EXPECT_EQ(to_string({"", "a file", "nothing", ""}), "expected a file, got nothing");
  EXPECT_EQ(to_string({"unknown key", "", "", "did you mean y?"}), "unknown key\n  hint: did you mean y?");
}

TEST(Error, KindsAreErrorsWithTheMessage) {
  const Problem problem{"p", "e", "g", ""};
  const auto throws_as = [&]<class E>() {
    try {
      throw E(problem);
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(throws_as.operator()<ConfigError>(), "p: expected e, got g");
  EXPECT_EQ(throws_as.operator()<DataError>(), "p: expected e, got g");
  EXPECT_EQ(throws_as.operator()<CheckpointError>(), "p: expected e, got g");
  EXPECT_EQ(throws_as.operator()<FileError>(), "p: expected e, got g");
  EXPECT_STREQ(ConfigError("plain").what(), "plain");
}

TEST(NearestName, FindsSlipsAndKeepsQuietOtherwise) {
  const std::vector<std::string> names{"num_steps", "num_heads", "batch_size", "lr"};
  EXPECT_EQ(nearest_name("num_step", names), "num_steps");
  EXPECT_EQ(nearest_name("num_stpes", names), "num_steps");
  EXPECT_EQ(nearest_name("num_heds", names), "num_heads");
  EXPECT_EQ(nearest_name("bath_size", names), "batch_size");
  EXPECT_EQ(nearest_name("batch_size", names), "batch_size");
  EXPECT_EQ(nearest_name("optimizer", names), "");
  EXPECT_EQ(nearest_name("num_steps", {}), "");
}

}  // namespace
}  // namespace dalle

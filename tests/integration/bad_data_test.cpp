// What the trainers do with data that are not as they should be.
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// Trains a dVAE on a shard of these bytes.
Outcome train_on(const Workplace& place, const std::string& tar, std::vector<std::string> more = {}) {
  return place.train("dvae", dvae_yaml(10, place.file("data.tar", tar)), "run", std::move(more));
}

void expect_refused(const Workplace& place, const Outcome& outcome, int exit_code, const std::string& said) {
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("error: train-"), HasSubstr(said)));
  EXPECT_FALSE(fs::exists(place / "run")) << "nothing is made";
}

TEST(BadData, MissingShards) {
  const Workplace place("missing-data");
  const auto lost = place.train("dvae", dvae_yaml(2, place.at("nowhere.tar")), "run");
  expect_refused(place, lost, 2, "nowhere.tar: expected tar shards, got no such file");
  fs::create_directory(place / "folder");
  expect_refused(place, place.train("dvae", dvae_yaml(2, place.at("folder")), "run"), 2, "a folder without .tar files");
  expect_refused(place, place.train("dvae", dvae_yaml(2, place.at("part-*.tar")), "run"), 2, "no file that matches");
  expect_refused(place, place.train("tokenizer", tokenizer_yaml(340, place.at("nowhere.tar")), "run"), 2,
                 "nowhere.tar");
  expect_refused(place, place.train("dvae", dvae_yaml(2), "run", {"--set", "data.sources=[]"}), 2,
                 "(data): expected at least one entry in sources, got none");
}

TEST(BadData, EmptyShards) {
  const Workplace place("empty-data");
  expect_refused(place, train_on(place, testing::make_tar({})), 1, "at least one picture");
  expect_refused(place, train_on(place, ""), 1, "data.tar");
  expect_refused(place, train_on(place, testing::make_tar({{"a.png", coloured_pictures(1)[0].second}})), 1,
                 "no caption");
  expect_refused(place, train_on(place, testing::make_tar({{"readme", "hello"}})), 1, "no such pair");
}

TEST(BadData, AFileThatIsNoShard) {
  const Workplace place("no-tar");
  expect_refused(place, train_on(place, std::string(5000, 'x')), 1, "data.tar");
}

TEST(BadData, AShardCutShortIsUsedAsFarAsItGoes) {
  const Workplace place("cut-data");
  const std::string tar = testing::make_tar(coloured_pictures(30));
  const std::string last = "picture-129.png";
  const size_t header = tar.find(last);
  ASSERT_NE(header, std::string::npos);
  const auto outcome = train_on(place, tar.substr(0, header + 512 + 100));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("picture-129.png is cut short"), HasSubstr("29 usable samples; 1 cut short")));
  EXPECT_EQ(train_lines(place / "run").size(), 10U);
}

/// 40 pictures of which every `each`-th is text.
testing::TarFiles partly_pictures(int64_t each) {
  auto files = coloured_pictures(40);
  for (int64_t i = 3; i < 40; i += each) files[static_cast<size_t>(2 * i)].second = "this is no picture";
  return files;
}

TEST(BadData, APictureThatIsNoneIsSkippedAndCounted) {
  const Workplace place("bad-picture");
  const auto outcome = train_on(place, testing::make_tar(partly_pictures(40)));  // 2.5 %, and one
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("picture-103"));
  const auto lines = train_lines(place / "run");
  ASSERT_EQ(lines.size(), 10U);
  EXPECT_EQ(lines.back()["bad_samples"], 1) << "40 samples, each seen once";
}

TEST(BadData, TooManyOfThemEndTheRun) {
  const Workplace place("bad-pictures");
  const auto outcome = train_on(place, testing::make_tar(partly_pictures(5)));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("at most 1 % unusable (max_bad_share)"), HasSubstr("picture-1")));
  EXPECT_TRUE(fs::is_empty(place / "run/checkpoints")) << "no half checkpoint";
  EXPECT_THAT(read_file(place / "run/log.txt"), HasSubstr("unusable picture"));
}

TEST(BadData, ACaptionFileThatIsNotUtf8) {
  const Workplace place("bad-caption");
  auto files = coloured_pictures(30);
  files[7].second = "caf\xE9\n";  // Latin-1
  const auto some = train_on(place, testing::make_tar(files));
  EXPECT_EQ(some.exit_code, 0) << some.err;
  EXPECT_THAT(some.err, AllOf(HasSubstr("picture-103"), HasSubstr("UTF-8"), HasSubstr("1 with unreadable captions")));
  for (size_t i = 1; i < files.size(); i += 2) files[i].second = "\xFF\xFE\n";
  fs::remove_all(place / "run");
  expect_refused(place, train_on(place, testing::make_tar(files)), 1, "UTF-8");
  expect_refused(place, place.train("tokenizer", tokenizer_yaml(340, place.at("data.tar")), "run"), 1, "UTF-8");
}

TEST(BadData, PicturesThatAreTooSmall) {
  const Workplace place("small-pictures");
  const auto refused = train_on(place, testing::make_tar(coloured_pictures(30)), {"--set", "model.image_size=32"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("at least 32 pixels"), HasSubstr("upscale_small")));
  fs::remove_all(place / "run");
  const auto enlarged = train_on(place, testing::make_tar(coloured_pictures(30)),
                                 {"--set", "model.image_size=32", "--set", "data.upscale_small=true"});
  EXPECT_EQ(enlarged.exit_code, 0) << enlarged.err;
}

}  // namespace
}  // namespace dalle::integration

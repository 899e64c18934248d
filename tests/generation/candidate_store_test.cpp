#include "dalle/generation/candidate_store.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::generation {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

FinishedCandidate candidate(int64_t number) {
  return {number, 0.25 * static_cast<double>(number), -1.5 * static_cast<double>(number), {number, 2, 3}};
}

class CandidateStoreTest : public ::testing::Test {
 protected:
  static Tensor pictures(int64_t count) { return at::arange(count * 3 * 4 * 4).view({count, 3, 4, 4}) / 255.0f; }
  std::filesystem::path directory() const { return place_ / "caption-0000"; }
  std::filesystem::path journal() const { return directory() / "candidates.jsonl"; }
  void fill() const {
    CandidateStore store(directory());
    store.add({candidate(0), candidate(2)}, pictures(2));
    store.add({candidate(3)}, pictures(1));
  }
  dalle::testing::TempDirectory place_{"candidates"};
};

TEST_F(CandidateStoreTest, HoldsWhatWasFinished) {
  fill();
  const CandidateStore store(directory());
  ASSERT_EQ(store.finished().size(), 3u);
  const auto& second = store.finished()[1];
  EXPECT_EQ(second.number, 2);
  EXPECT_EQ(second.score, 0.5);
  EXPECT_EQ(second.log_likelihood, -3);
  EXPECT_THAT(second.tokens, ElementsAre()) << "not in memory";
  EXPECT_THAT(store.with_tokens()[1].tokens, ElementsAre(2, 2, 3));
  EXPECT_THAT(store.missing(6), ElementsAre(1, 4, 5));
  const Tensor expected = at::arange(48, 96).view({3, 4, 4}).permute({1, 2, 0}).to(at::kByte);
  EXPECT_TRUE(at::equal(store.picture(2), expected));
}

TEST_F(CandidateStoreTest, WhatIsNoFiniteNumberComesBackAsItWas) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  {
    CandidateStore store(directory());
    store.add({{0, std::nan(""), -kInfinity, {1}}, {1, kInfinity, -2, {1}}}, pictures(2));
  }
  const CandidateStore store(directory());
  ASSERT_EQ(store.finished().size(), 2u);
  EXPECT_TRUE(std::isnan(store.finished()[0].score));
  EXPECT_EQ(store.finished()[0].log_likelihood, -kInfinity);
  EXPECT_EQ(store.finished()[1].score, kInfinity);
}

TEST_F(CandidateStoreTest, RanksReadWhatEachOtherFinished) {
  CandidateStore first(directory()), other(directory(), 12);
  first.add({candidate(0)}, pictures(1));
  other.add({candidate(5), candidate(1)}, pictures(2));
  EXPECT_THAT(first.missing(6), ElementsAre(1, 2, 3, 4, 5)) << "before it looks";
  first.refresh();
  first.refresh();
  EXPECT_EQ(first.finished().size(), 3u);
  EXPECT_THAT(first.missing(6), ElementsAre(2, 3, 4));
  append_line(directory() / "candidates-12.jsonl", R"({"candidate": 2, "sco)");  // half written by now
  first.refresh();
  EXPECT_EQ(first.finished().size(), 3u);
  EXPECT_EQ(CandidateStore(directory(), 3).finished().size(), 3u) << "whichever rank it is";
  first.close();
  EXPECT_THAT(CandidateStore(directory()).finished(), IsEmpty());
}

TEST_F(CandidateStoreTest, ALineCutShortIsDrawnAgain) {
  fill();
  const std::string whole = read_file(journal());
  for (size_t size = 0; size < whole.size(); size += 7) {
    write_file(journal(), whole.substr(0, size));
    const auto lines = std::count(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size), '\n');
    CandidateStore store(directory());
    // A line is whole without its end of line, too.
    const bool ends_whole = whole[size] == '\n';
    ASSERT_EQ(static_cast<int64_t>(store.finished().size()), lines + (ends_whole ? 1 : 0)) << size;
    const auto missing = store.missing(4);
    for (const int64_t number : missing) store.add({candidate(number)}, pictures(1));
    ASSERT_THAT(CandidateStore(directory()).missing(4), IsEmpty()) << size;
  }
}

TEST_F(CandidateStoreTest, WithoutItsPictureACandidateIsNotFinished) {
  fill();
  std::filesystem::remove(directory() / CandidateStore::picture_name(2));
  EXPECT_THAT(CandidateStore(directory()).missing(4), ElementsAre(1, 2));
}

TEST_F(CandidateStoreTest, KeepsInfinity) {
  FinishedCandidate impossible = candidate(1);
  impossible.log_likelihood = -std::numeric_limits<double>::infinity();
  CandidateStore(directory()).add({impossible}, pictures(1));
  EXPECT_EQ(CandidateStore(directory()).finished()[0].log_likelihood, impossible.log_likelihood);
}

TEST_F(CandidateStoreTest, SaysWhereItCannotWrite) {
  write_file(place_ / "file", "");
  EXPECT_THROW(CandidateStore(place_ / "file/below"), FileError);
  CandidateStore store(directory());
  EXPECT_THROW(store.add({candidate(1)}, pictures(2)), c10::ValueError);
}

TEST_F(CandidateStoreTest, CloseLeavesThePictures) {
  fill();
  CandidateStore store(directory());
  store.close();
  EXPECT_FALSE(std::filesystem::exists(journal()));
  EXPECT_TRUE(std::filesystem::exists(directory() / "candidate-0003.png"));
}

TEST(BestFirst, TheBestComeFirstAndWhatIsNoNumberLast) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double nan = std::nan("");
  const std::vector<double> scores{0.5, nan, -kInfinity, 2, kInfinity, nan, 2, -1};
  std::vector<FinishedCandidate> candidates;
  for (const double score : scores) candidates.push_back({static_cast<int64_t>(candidates.size()), score, 0, {}});
  std::vector<int64_t> order;
  for (const auto& candidate : best_first(candidates)) order.push_back(candidate.number);
  EXPECT_THAT(order, ElementsAre(4, 3, 6, 0, 7, 2, 1, 5));
}

}  // namespace
}  // namespace dalle::generation

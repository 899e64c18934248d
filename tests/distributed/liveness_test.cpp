// Who is lost, from what ranks say of themselves, on a clock of the test's own.
#include "dalle/distributed/liveness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"

namespace dalle::distributed {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

/// Three ranks of which rank 0 watches; a timeout of 100 s: interval 2 s, silent 50 s, suspected 8 s, stuck 60 s.
class Watching {
 public:
  Watching() : liveness_({0, 1, 2}, 0, LivenessLimits::of(seconds(100)), now_) {
    for (auto& beat : beats) beat = {.count = 0, .place = "step 12, backward pass"};
  }

  /// `time` passes, with a beat of every rank but the silent ones every two seconds; the first verdict.
  std::string after(seconds time, std::initializer_list<int> silent = {}) {
    for (int64_t i = 0; i < time / seconds(2); ++i) {
      now_ += seconds(2);
      for (size_t rank = 0; rank < 3; ++rank) {
        const bool is_silent = std::find(silent.begin(), silent.end(), static_cast<int>(rank)) != silent.end();
        if (!is_silent) ++beats[rank].count;
        liveness_.observe(rank, beats[rank], now_);
      }
      if (const auto verdict = liveness_.verdict(now_)) return *verdict;
    }
    return "";
  }
  void sleep(seconds time) { now_ += time; }
  void forgive() { liveness_.forgive(now_); }
  bool others_have_ended() const { return liveness_.others_have_ended(now_); }
  Liveness& liveness() { return liveness_; }

  Beat beats[3];

 private:
  Liveness::Clock::time_point now_{};
  Liveness liveness_;
};

TEST(Liveness, ABeatIsReadAsItWasWritten) {
  const Beat beat{.count = 7,
                  .progress = 300,
                  .collectives = 57,
                  .waits = true,
                  .broken = true,
                  .place = "step 12, backward pass, waiting in collective 57 (all-reduce)"};
  const Beat read = parse_beat(to_text(beat));
  EXPECT_EQ(read.count, 7);
  EXPECT_EQ(read.progress, 300);
  EXPECT_EQ(read.collectives, 57);
  EXPECT_TRUE(read.waits && !read.open_ended && read.broken && !read.ended);
  EXPECT_EQ(read.place, beat.place);
  EXPECT_EQ(parse_beat(to_text({.open_ended = true, .ended = true})).place, "");
  EXPECT_TRUE(parse_beat(to_text({.open_ended = true})).open_ended && parse_beat(to_text({.ended = true})).ended);
  EXPECT_THROW(parse_beat("7 300 57 1 somewhere"), Error);
  EXPECT_THROW(parse_beat(""), Error);
}

TEST(Liveness, EveryFindingFitsInTheTimeout) {
  for (const milliseconds timeout : {milliseconds(5000), milliseconds(120000), milliseconds(86400000)}) {
    const auto limits = LivenessLimits::of(timeout);
    // Found, after the last beat and before the next look; written; read by the others; and their grace of 2 s.
    const auto telling = 4 * limits.interval + std::min(timeout / 8, milliseconds(2000));
    EXPECT_LT(limits.silent + telling, timeout);
    EXPECT_LT(limits.stuck + telling, timeout);
    EXPECT_LT(limits.suspected, limits.silent);
  }
}

TEST(Liveness, WhoeverSaysThatItLivesIsNotLost) {
  Watching group;
  for (int step = 0; step < 20; ++step) {
    for (auto& beat : group.beats) ++beat.progress;
    EXPECT_EQ(group.after(seconds(60)), "");
  }
}

TEST(Liveness, ASilentRankIsNamedWithItsPlace) {
  Watching group;
  EXPECT_EQ(group.after(seconds(10)), "");
  group.beats[0].waits = group.beats[1].waits = true;
  EXPECT_EQ(group.after(seconds(48), {2}), "");
  EXPECT_THAT(group.after(seconds(4), {2}), AllOf(StartsWith("rank 2 was lost: no sign of life for 5"),
                                                  HasSubstr("last seen at step 12, backward pass")));
}

TEST(Liveness, ARankThatHasNotComeYetIsNotLost) {
  Watching group;
  group.beats[1].count = -1;
  EXPECT_EQ(group.after(seconds(200), {1}), "");
  ++group.beats[1].count;
  EXPECT_EQ(group.after(seconds(2)), "");
  EXPECT_THAT(group.after(seconds(60), {1}), StartsWith("rank 1 was lost"));
}

TEST(Liveness, AFailedCollectiveMakesSilenceShort) {
  Watching group;
  EXPECT_EQ(group.after(seconds(10)), "");
  group.beats[1].broken = true;
  EXPECT_EQ(group.after(seconds(8), {2}), "");
  EXPECT_THAT(group.after(seconds(2), {2}), StartsWith("rank 2 was lost"));

  Watching own;
  EXPECT_EQ(own.after(seconds(2)), "");
  own.liveness().suspect();
  EXPECT_THAT(own.after(seconds(10), {2}), StartsWith("rank 2 was lost"));
}

TEST(Liveness, TheRankThatOthersWaitForHangs) {
  Watching group;
  group.beats[0].waits = group.beats[2].waits = true;
  group.beats[0].collectives = group.beats[2].collectives = 57;
  group.beats[1].collectives = 56;
  group.beats[1].place = "step 12, reading data";
  for (auto& beat : group.beats) ++beat.progress;
  EXPECT_EQ(group.after(seconds(60)), "");
  EXPECT_THAT(group.after(seconds(6)), AllOf(StartsWith("rank 1 hangs: it has been at step 12, reading data for 6"),
                                             HasSubstr("trainer.timeout_seconds")));
}

TEST(Liveness, OfTwoThatHangTheOneThatIsLeastFarIsNamed) {
  Watching group;
  group.beats[0].waits = true;
  group.beats[0].collectives = 58;
  group.beats[1].collectives = 57;
  group.beats[2].collectives = 56;
  EXPECT_THAT(group.after(seconds(80)), StartsWith("rank 2 hangs"));
}

TEST(Liveness, ARankMayHangThatWatches) {
  Watching group;
  group.beats[1].waits = group.beats[2].waits = true;
  group.beats[1].collectives = group.beats[2].collectives = 1;
  EXPECT_THAT(group.after(seconds(80)), StartsWith("rank 0 hangs"));
}

TEST(Liveness, ASlowRankIsNotBlamed) {
  Watching group;
  group.beats[0].waits = group.beats[2].waits = true;
  group.beats[0].collectives = group.beats[2].collectives = 57;
  for (int pass = 0; pass < 10; ++pass) {  // ten passes of 50 s, while the others wait
    ++group.beats[1].progress;
    EXPECT_EQ(group.after(seconds(50)), "");
  }
}

TEST(Liveness, WhereNobodyWaitsNobodyHangs) {
  Watching group;
  EXPECT_EQ(group.after(seconds(1000)), "");
  group.beats[0].collectives = 3;  // has only just gone on
  ++group.beats[0].progress;
  EXPECT_EQ(group.after(seconds(30)), "");
}

TEST(Liveness, WhereAllWaitNobodyIsBlamed) {
  Watching group;
  for (auto& beat : group.beats) beat.waits = true;
  group.beats[1].collectives = 5;
  EXPECT_EQ(group.after(seconds(1000)), "");
}

TEST(Liveness, AnOpenEndedPlaceMayTakeAnyTimeButNotInSilence) {
  Watching group;
  group.beats[0].open_ended = true;
  group.beats[0].place = "step 40, saving";
  group.beats[1].waits = group.beats[2].waits = true;
  group.beats[1].collectives = group.beats[2].collectives = 1;
  EXPECT_EQ(group.after(seconds(1000)), "");
  EXPECT_THAT(group.after(seconds(60), {1}), StartsWith("rank 1 was lost"));
}

TEST(Liveness, AReaderThatSleptBlamesNobody) {
  Watching group;
  EXPECT_EQ(group.after(seconds(10)), "");
  group.sleep(seconds(300));
  group.forgive();
  EXPECT_EQ(group.after(seconds(20)), "");
  EXPECT_THAT(group.after(seconds(60), {2}), StartsWith("rank 2 was lost"));  // measured from then on
}

TEST(Liveness, WhoHasEndedMayBeSilent) {
  Watching group;
  group.beats[1].ended = true;
  EXPECT_EQ(group.after(seconds(200), {1}), "");
  EXPECT_FALSE(group.others_have_ended());
  group.beats[2].ended = true;
  EXPECT_EQ(group.after(seconds(2)), "");
  EXPECT_TRUE(group.others_have_ended());
}

}  // namespace
}  // namespace dalle::distributed

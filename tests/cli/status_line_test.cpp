#include "dalle/cli/status_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dalle/core/logging.h"

namespace dalle::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const StatusUpdate kUpdate{.step = 1200,
                           .loss = 0.12344,
                           .items_per_second = 312.4,
                           .wait_share = 0.031,
                           .extra = {{"tau", 0.8}, {"kl", 1.25}}};

StatusFormat wide() { return {"prior", "images", 5000, 252, 0, false}; }

TEST(StatusLine, ShowsEverythingWhereThereIsRoom) {
  EXPECT_EQ(format_status(wide(), kUpdate),
            "prior 1200/5000 24% | loss 0.1234 | tau 0.8 | kl 1.25 | 312 images/s | wait 3% | left 4m12s");
}

TEST(StatusLine, UtilisationStandsBesideTheWait) {
  StatusUpdate update = kUpdate;
  update.mfu = 0.314;
  EXPECT_THAT(format_status(wide(), update), HasSubstr("312 images/s | wait 3% | mfu 31% | left 4m12s"));
}

TEST(StatusLine, ExtrasGoFirstThenTheRight) {
  StatusFormat format = wide();
  std::string shorter = format_status(format, kUpdate);
  const std::vector<std::string> expected = {
      "prior 1200/5000 24% | loss 0.1234 | tau 0.8 | 312 images/s | wait 3% | left 4m12s",
      "prior 1200/5000 24% | loss 0.1234 | 312 images/s | wait 3% | left 4m12s",
      "prior 1200/5000 24% | loss 0.1234 | 312 images/s | wait 3%",
      "prior 1200/5000 24% | loss 0.1234 | 312 images/s",
      "prior 1200/5000 24% | loss 0.1234",
      "prior 1200/5000 24%",
      "prior 1200/5000 24"};
  for (const std::string& line : expected) {
    format.max_width = static_cast<int64_t>(shorter.size()) - 1;
    shorter = format_status(format, kUpdate);
    EXPECT_EQ(shorter, line);
  }
}

TEST(StatusLine, ColumnsAreCountedNotBytes) {
  StatusFormat format = wide();
  format.is_utf8 = true;
  const std::string line = format_status(format, kUpdate);
  EXPECT_THAT(line, HasSubstr(" \u00b7 "));
  format.max_width = static_cast<int64_t>(line.size()) - 6;  // six two-byte separators
  EXPECT_EQ(format_status(format, kUpdate), line);
  format.max_width -= 1;
  EXPECT_NE(format_status(format, kUpdate), line);
}

TEST(StatusLine, WithoutUtf8OnlyAsciiIsWritten) {
  for (const char byte : format_status(wide(), kUpdate)) EXPECT_LT(static_cast<unsigned char>(byte), 128);
}

TEST(StatusLine, UnknownTotalsAndTimesAreLeftOut) {
  StatusFormat format = wide();
  format.total_steps = 0;
  format.seconds_left = -1;
  const std::string line = format_status(format, kUpdate);
  EXPECT_THAT(line, HasSubstr("prior step 1200 |"));
  EXPECT_THAT(line, Not(HasSubstr("left")));
}

TEST(StatusLine, DurationsAreShort) {
  EXPECT_EQ(format_duration(0), "0s");
  EXPECT_EQ(format_duration(59.6), "1m00s");
  EXPECT_EQ(format_duration(252), "4m12s");
  EXPECT_EQ(format_duration(7500), "2h05m");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600 + 59), "3d04h");
  EXPECT_EQ(format_duration(std::nan("")), "?");
}

TEST(StatusLine, RatesHaveThreeDigits) {
  EXPECT_EQ(format_rate(0), "0.000");
  EXPECT_EQ(format_rate(0.1234), "0.123");
  EXPECT_EQ(format_rate(9.996), "10.0");
  EXPECT_EQ(format_rate(312.4), "312");
  EXPECT_EQ(format_rate(999.6), "1.00k");
  EXPECT_EQ(format_rate(12345), "12.3k");
  EXPECT_EQ(format_rate(1.2e6), "1.20M");
}

// A line with a clock of our own and its output caught.
struct Recorder {
  double time = 0;
  std::string terminal;
  std::vector<std::string> lines;

  StatusOptions options(bool is_terminal) {
    StatusOptions options;
    options.is_terminal = is_terminal;
    options.is_utf8 = false;
    options.width = 100;
    options.now = [this] { return time; };
    options.write_terminal = [this](const std::string& bytes) { terminal += bytes; };
    options.write_plain_line = [this](const std::string& line) { lines.push_back(line); };
    return options;
  }
  int draws() const {
    int count = 0;
    for (size_t at = terminal.find("\r\033[Ktest"); at != std::string::npos;
         at = terminal.find("\r\033[Ktest", at + 1)) {
      ++count;
    }
    return count;
  }
};

TEST(StatusLine, RedrawsInPlaceTenTimesASecond) {
  Recorder recorder;
  {
    StatusLine line("test", "images", 1000, 0, recorder.options(true));
    for (int step = 1; step <= 100; ++step) {
      recorder.time = 0.01 * step + 0.005;
      line.update({step, 1.0, 10, 0, {}});
    }
    EXPECT_GE(recorder.draws(), 9);
    EXPECT_LE(recorder.draws(), 11);
    EXPECT_EQ(recorder.terminal.find('\n'), std::string::npos);
  }
  EXPECT_TRUE(recorder.terminal.ends_with("\n"));
  EXPECT_THAT(recorder.terminal, HasSubstr("test 100/1000 10% | loss 1 | 10.0 images/s | wait 0%\n"));
  EXPECT_TRUE(recorder.lines.empty());
}

TEST(StatusLine, TimeLeftIsMeasuredFromTheFirstUpdate) {
  Recorder recorder;
  StatusLine line("test", "images", 1000, 500, recorder.options(true));
  recorder.time = 50;  // start-up
  line.update({501, 1.0, 10, 0, {}});
  EXPECT_THAT(recorder.terminal, Not(HasSubstr("left")));
  recorder.time = 60;
  line.update({511, 1.0, 10, 0, {}});
  EXPECT_THAT(recorder.terminal, HasSubstr("left 8m09s"));  // 489 steps at one a second
  recorder.time = 61;
  line.advance(512);
  EXPECT_THAT(recorder.terminal, HasSubstr("512/1000"));
}

TEST(StatusLine, LogLinesEraseTheLiveLine) {
  Recorder recorder;
  StatusLine line("test", "images", 10, 0, recorder.options(true));
  line.update({1, 1.0, 10, 0, {}});
  const size_t before = recorder.terminal.size();
  ::testing::internal::CaptureStderr();
  log_warning("something");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "warning: something\n");
  EXPECT_EQ(recorder.terminal.substr(before), "\r\033[K");
  recorder.time = 0.001;
  line.update({2, 1.0, 10, 0, {}});
  EXPECT_EQ(recorder.draws(), 2) << "redrawn at once";
}

TEST(StatusLine, PlainLinesComeNowAndThen) {
  Recorder recorder;
  {
    StatusLine line("test", "tokens", 100, 0, recorder.options(false));
    for (int step = 1; step <= 25; ++step) {
      recorder.time = step;
      line.update({step, 1.0, 10, 0, {}});
      line.advance(step);
    }
    EXPECT_EQ(recorder.lines.size(), 3u);  // at 1, 11 and 21 seconds
  }
  ASSERT_EQ(recorder.lines.size(), 4u);
  EXPECT_THAT(recorder.lines.back(), HasSubstr("test 25/100"));
  EXPECT_EQ(recorder.terminal, "");
}

TEST(StatusLine, NothingIsShownBeforeTheFirstUpdate) {
  Recorder recorder;
  {
    StatusLine line("test", "tokens", 100, 0, recorder.options(true));
    line.advance(1);
  }
  EXPECT_EQ(recorder.terminal, "");
}

}  // namespace
}  // namespace dalle::cli

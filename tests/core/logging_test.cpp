// Where log lines go: console by level, the run's file always.
#include "dalle/core/logging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

struct LogFile {
  explicit LogFile(const std::filesystem::path& path) { set_log_file(path); }
  ~LogFile() { set_log_file({}); }
};

std::string console(const std::function<void()>& body) {
  ::testing::internal::CaptureStderr();
  body();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Logging, ConsoleShowsInfoAndAboveWithPlainPrefixes) {
  EXPECT_EQ(console([] {
              log_debug("hidden");
              log_info("loaded {} %s");
              log_warning("odd");
              log_error("bad");
            }),
            "loaded {} %s\nwarning: odd\nerror: bad\n");
  set_console_level(LogLevel::kError);
  EXPECT_EQ(console([] { log_warning("odd"); }), "");
  set_console_level(LogLevel::kInfo);
}

TEST(Logging, FileTakesEveryLevelWithTimeAndAppends) {
  const testing::TempDirectory scratch("logging");
  const auto path = scratch / "log.txt";
  write_file(path, "from before\n");
  console([&] {
    const LogFile file(path);
    log_debug("details");
    log_error("bad");
    EXPECT_THAT(read_file(path), HasSubstr("bad"));  // flushed line by line
  });
  console([] { log_info("after closing"); });
  const std::string text = read_file(path);
  EXPECT_THAT(text, MatchesRegex("from before\n"
                                 "[0-9-]+ [0-9:.]+ debug +details\n"
                                 "[0-9-]+ [0-9:.]+ error +bad\n"));
}

TEST(Logging, AFileThatCannotBeOpenedIsAFileError) {
  const testing::TempDirectory scratch("logging-error");
  write_file(scratch / "file", "");
  EXPECT_THROW(set_log_file(scratch / "file" / "log.txt"), FileError);
  EXPECT_EQ(console([] { log_info("still here"); }), "still here\n");
}

int erased = 0;

TEST(Logging, TheLiveLineIsErasedBeforeWhatIsShownOnly) {
  erased = 0;
  set_live_line_eraser([] { ++erased; });
  console([] {
    log_debug("hidden");
    EXPECT_EQ(erased, 0);
    log_info("shown");
    EXPECT_EQ(erased, 1);
  });
  set_live_line_eraser(nullptr);
  console([] { log_info("shown"); });
  EXPECT_EQ(erased, 1);
}

}  // namespace
}  // namespace dalle

// What a trainer shows while it runs: on a terminal one live line, redrawn in place; elsewhere plain log lines now and
// then. Log messages erase the live line first, so the two never mix.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dalle::cli {

struct StatusUpdate {
  int64_t step = 0;            // steps done
  std::optional<double> loss;  // left out where there is none
  double items_per_second = 0;
  std::optional<double> wait_share;                   // of the time, waiting for data, 0..1
  std::optional<double> mfu;                          // model FLOPs utilisation, 0..1
  std::vector<std::pair<std::string, double>> extra;  // shown after the loss; the first to go where room is short
};

/// Overrides for tests; every field left alone takes what the process sees.
struct StatusOptions {
  std::optional<bool> is_terminal;                           // stderr is a terminal that moves its cursor
  std::optional<bool> is_utf8;                               // by LC_ALL, LC_CTYPE, LANG
  int64_t width = 0;                                         // columns; 0: ask the terminal each time
  double plain_interval_seconds = 10;                        // between plain lines
  std::function<double()> now;                               // seconds, steady
  std::function<void(const std::string&)> write_terminal;    // bytes for stderr
  std::function<void(const std::string&)> write_plain_line;  // default: log_info
};

/// One at a time. Draws nothing until the first update.
class StatusLine {
 public:
  /// `unit` is what items_per_second counts: "images", "tokens".
  StatusLine(std::string name, std::string unit, int64_t total_steps, int64_t start_step, StatusOptions options = {});
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  /// New values, at the log interval. Drawn at most ten times a second (terminal) or once in plain_interval_seconds.
  void update(const StatusUpdate& update);

  /// A step was done, values as before: keeps the live line's count and time left moving without a device sync.
  void advance(int64_t step);

  /// Shows the last values and ends the line. Called by the destructor where the caller did not.
  void finish();

  /// Takes the live line off the terminal until the next update; called before log messages are printed.
  void erase();

 private:
  void show(bool is_last);
  double seconds_left(double now) const;

  std::string name_;
  std::string unit_;
  int64_t total_steps_;
  StatusOptions options_;
  StatusUpdate last_;
  std::optional<std::pair<int64_t, double>> first_;  // step and time of the first update: start-up time is not counted
  double last_shown_;
  bool is_drawn_ = false;
  bool is_finished_ = false;
};

struct StatusFormat {
  std::string name;
  std::string unit;
  int64_t total_steps = 0;
  double seconds_left = -1;  // below 0: unknown, left out
  int64_t max_width = 0;     // columns; 0: no limit
  bool is_utf8 = false;
};

/// "prior 1200/5000 24% | loss 0.1234 | 312 images/s | wait 3% | mfu 31% | left 4m12s", shortened to max_width: extras go first,
/// then the parts from the right.
std::string format_status(const StatusFormat& format, const StatusUpdate& update);

/// "45s", "4m12s", "2h05m", "3d04h"
std::string format_duration(double seconds);

/// Three significant digits: "0.123", "31.2", "312", "12.3k", "1.20M"
std::string format_rate(double value);

}  // namespace dalle::cli

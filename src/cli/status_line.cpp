#include "dalle/cli/status_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "dalle/core/logging.h"
#include "dalle/core/str.h"

namespace dalle::cli {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr int64_t kDefaultWidth = 80;
constexpr const char* kEraseLine = "\r\033[K";

// The line that log messages erase. Loader threads log too, hence the lock; nothing is logged while it is held.
std::mutex live_mutex;
StatusLine* live_line = nullptr;

void erase_live_line() {
  const std::lock_guard lock(live_mutex);
  if (live_line != nullptr) live_line->erase();
}

bool environment_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    std::string lower(value);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    return lower.find("utf-8") != std::string::npos || lower.find("utf8") != std::string::npos;
  }
  return false;
}

bool stderr_is_terminal() {
  const char* kind = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && kind != nullptr && std::string(kind) != "dumb";
}

int64_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kDefaultWidth;
}

void write_stderr(const std::string& bytes) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, bytes.data(), bytes.size());
}

StatusOptions with_defaults(StatusOptions options) {
  if (!options.is_terminal) options.is_terminal = stderr_is_terminal();
  if (!options.is_utf8) options.is_utf8 = environment_is_utf8();
  if (!options.write_terminal) options.write_terminal = write_stderr;
  if (!options.write_plain_line) options.write_plain_line = [](const std::string& line) { log_info(line); };
  if (!options.now) {
    options.now = [] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
  }
  return options;
}

}  // namespace

StatusLine::StatusLine(std::string name, std::string unit, int64_t total_steps, int64_t start_step,
                       StatusOptions options)
    : name_(std::move(name)),
      unit_(std::move(unit)),
      total_steps_(total_steps),
      options_(with_defaults(std::move(options))),
      last_shown_(-1e18) {
  last_.step = start_step;
  if (!*options_.is_terminal) return;
  {
    const std::lock_guard lock(live_mutex);
    live_line = this;
  }
  set_live_line_eraser(erase_live_line);
}

StatusLine::~StatusLine() {
  finish();
  if (!*options_.is_terminal) return;
  set_live_line_eraser(nullptr);
  const std::lock_guard lock(live_mutex);
  live_line = nullptr;
}

void StatusLine::update(const StatusUpdate& update) {
  last_ = update;
  if (!first_) first_ = {update.step, options_.now()};
  show(/*is_last=*/false);
}

void StatusLine::advance(int64_t step) {
  last_.step = step;
  if (first_ && *options_.is_terminal) show(/*is_last=*/false);
}

void StatusLine::finish() {
  if (is_finished_ || !first_) return;
  is_finished_ = true;
  show(/*is_last=*/true);
}

void StatusLine::erase() {
  if (!is_drawn_) return;
  options_.write_terminal(kEraseLine);
  is_drawn_ = false;
}

void StatusLine::show(bool is_last) {
  const double now = options_.now();
  StatusFormat format{name_, unit_, total_steps_, is_last ? -1 : seconds_left(now), 0, *options_.is_utf8};
  if (!*options_.is_terminal) {
    if (!is_last && now - last_shown_ < options_.plain_interval_seconds) return;
    last_shown_ = now;
    format.is_utf8 = false;  // plain lines end in files that are read anywhere
    options_.write_plain_line(format_status(format, last_));
    return;
  }
  const std::lock_guard lock(live_mutex);
  if (!is_last && is_drawn_ && now - last_shown_ < kRedrawSeconds) return;
  last_shown_ = now;
  // One column less than there is: a full line would wrap and could not be redrawn in place.
  format.max_width = std::max<int64_t>(1, (options_.width > 0 ? options_.width : terminal_width()) - 1);
  options_.write_terminal(str(kEraseLine, format_status(format, last_), is_last ? "\n" : ""));
  is_drawn_ = !is_last;
}

double StatusLine::seconds_left(double now) const {
  const int64_t steps = last_.step - first_->first;
  if (steps <= 0 || total_steps_ <= 0) return -1;
  return (now - first_->second) / static_cast<double>(steps) * static_cast<double>(total_steps_ - last_.step);
}

}  // namespace dalle::cli

// The pure half of status_line.h: numbers to text that fits a line.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "dalle/cli/status_line.h"
#include "dalle/core/str.h"

namespace dalle::cli {
namespace {

template <class... Values>
std::string formatted(const char* format, Values... values) {
  char text[64];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string format_value(double value) { return formatted("%.4g", value); }

std::string progress(const StatusFormat& format, int64_t step) {
  if (format.total_steps <= 0) return str(format.name, " step ", step);
  return str(format.name, " ", step, "/", format.total_steps, " ", step * 100 / format.total_steps, "%");
}

std::string join_parts(const std::vector<std::string>& parts, const std::string& separator) {
  std::string line;
  for (const std::string& part : parts) line += (line.empty() ? "" : separator) + part;
  return line;
}

// Columns of a line in which only whole separators are not ASCII.
int64_t num_columns(const std::string& utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char byte) { return (byte & 0xC0) != 0x80; });
}

}  // namespace

std::string format_status(const StatusFormat& format, const StatusUpdate& update) {
  const std::string separator = format.is_utf8 ? " \u00b7 " : " | ";
  std::vector<std::string> parts = {progress(format, update.step)};
  if (update.loss) parts.push_back("loss " + format_value(*update.loss));
  for (const auto& [name, value] : update.extra) parts.push_back(name + " " + format_value(value));
  parts.push_back(str(format_rate(update.items_per_second), " ", format.unit, "/s"));
  if (update.wait_share) parts.push_back(str("wait ", std::lround(100 * *update.wait_share), "%"));
  if (update.mfu) parts.push_back(str("mfu ", std::lround(100 * *update.mfu), "%"));
  if (format.seconds_left >= 0) parts.push_back("left " + format_duration(format.seconds_left));

  const size_t first_extra = update.loss ? 2 : 1;
  size_t num_extra = update.extra.size();
  std::string line = join_parts(parts, separator);
  while (format.max_width > 0 && num_columns(line) > format.max_width && parts.size() > 1) {
    parts.erase(num_extra > 0 ? parts.begin() + static_cast<int64_t>(first_extra + --num_extra) : parts.end() - 1);
    line = join_parts(parts, separator);
  }
  // One part is left: the name and counts, ASCII unless the user's name is not.
  if (format.max_width > 0 && num_columns(line) > format.max_width) line.resize(static_cast<size_t>(format.max_width));
  return line;
}

std::string format_duration(double seconds) {
  if (!(seconds < 1e9)) return "?";
  const auto total = static_cast<int64_t>(std::lround(std::max(0.0, seconds)));
  const auto days = static_cast<long>(total / 86400), hours = static_cast<long>(total / 3600 % 24);
  const auto minutes = static_cast<long>(total / 60 % 60), rest = static_cast<long>(total % 60);
  if (days > 0) return formatted("%ldd%02ldh", days, hours);
  if (hours > 0) return formatted("%ldh%02ldm", hours, minutes);
  if (minutes > 0) return formatted("%ldm%02lds", minutes, rest);
  return formatted("%lds", rest);
}

std::string format_rate(double value) {
  if (!std::isfinite(value)) return "?";
  constexpr std::array<const char*, 4> kSuffixes = {"", "k", "M", "G"};
  size_t suffix = 0;
  while (std::abs(value) >= 999.5 && suffix + 1 < kSuffixes.size()) {
    value /= 1000;
    ++suffix;
  }
  const double size = std::abs(value);
  const int decimals = size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3;
  return formatted("%.*f%s", decimals, value, kSuffixes[suffix]);
}

}  // namespace dalle::cli

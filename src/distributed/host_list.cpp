// Slurm's short form of lists of hosts.
#include <charconv>
#include <utility>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/distributed/launch_environment.h"

namespace dalle::distributed {
namespace {

constexpr int64_t kMostHosts = 1 << 20;

[[noreturn]] void fail_list(const std::string& list) {
  throw ConfigError(Problem{"list of hosts", "names and ranges such as node[003-010,12],other", "'" + list + "'",
                            "set MASTER_ADDR to the host of rank 0"});
}

/// "a[1,2]b,c" -> "a[1,2]b", "c": commas within brackets do not count.
std::vector<std::string> split_outside_brackets(const std::string& list) {
  std::vector<std::string> parts{""};
  int depth = 0;
  for (const char c : list) {
    depth += c == '[' ? 1 : c == ']' ? -1 : 0;
    if (depth < 0 || depth > 1) fail_list(list);
    if (c == ',' && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  if (depth != 0) fail_list(list);
  return parts;
}

int64_t number_of(const std::string& text, const std::string& list) {
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || stop != text.data() + text.size() || number < 0) fail_list(list);
  return number;
}

/// "003-010" -> 003, 004, ... 010; "12" -> 12.
std::vector<std::string> numbers_of(const std::string& range, const std::string& list) {
  const size_t dash = range.find('-');
  const std::string first = range.substr(0, dash), last = dash == std::string::npos ? first : range.substr(dash + 1);
  const int64_t from = number_of(first, list), to = number_of(last, list);
  if (to < from || to - from > kMostHosts) fail_list(list);
  std::vector<std::string> numbers;
  for (int64_t number = from; number <= to; ++number) {
    std::string text = str(number);
    if (text.size() < first.size()) text.insert(0, first.size() - text.size(), '0');
    numbers.push_back(std::move(text));
  }
  return numbers;
}

/// One entry, which may have several pairs of brackets.
void expand_entry(const std::string& head, const std::string& rest, const std::string& list,
                  std::vector<std::string>& hosts) {
  const size_t open = rest.find('[');
  if (open == std::string::npos) {
    hosts.push_back(head + rest);
    return;
  }
  const size_t close = rest.find(']', open);
  for (const auto& range : split_outside_brackets(rest.substr(open + 1, close - open - 1))) {
    for (const auto& number : numbers_of(range, list)) {
      expand_entry(head + rest.substr(0, open) + number, rest.substr(close + 1), list, hosts);
    }
  }
}

}  // namespace

std::vector<std::string> expand_host_list(const std::string& list) {
  std::vector<std::string> hosts;
  for (const auto& entry : split_outside_brackets(list)) {
    if (entry.empty()) fail_list(list);
    expand_entry("", entry, list, hosts);
  }
  return hosts;
}

}  // namespace dalle::distributed

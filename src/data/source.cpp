#include "dalle/data/source.h"

#include <glob.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/tar_source.h"

namespace dalle::data {
namespace {

std::optional<int64_t> to_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// The alternatives of "{000..031}" or "{a,b}", given what is between the braces.
std::vector<std::string> alternatives(const std::string& inner, const std::string& pattern) {
  const size_t dots = inner.find("..");
  if (dots != std::string::npos) {
    const auto first = to_number(std::string_view(inner).substr(0, dots));
    const auto last = to_number(std::string_view(inner).substr(dots + 2));
    constexpr int64_t kMostShards = 1000000;
    if (!first || !last || *last < *first || *last - *first > kMostShards) {
      throw ConfigError(
          Problem{.place = pattern, .expected = "a range such as {000..031}", .got = str("{", inner, "}")});
    }
    std::vector<std::string> items;
    for (int64_t i = *first; i <= *last; ++i) {
      const std::string digits = std::to_string(i);
      items.push_back(std::string(dots > digits.size() ? dots - digits.size() : 0, '0') + digits);
    }
    return items;
  }
  std::vector<std::string> items;
  for (size_t begin = 0; begin <= inner.size();) {
    const size_t end = std::min(inner.find(',', begin), inner.size());
    items.push_back(inner.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

std::vector<std::string> expand_braces(const std::string& pattern) {
  const size_t open = pattern.find('{');
  const size_t close = open == std::string::npos ? open : pattern.find('}', open);
  if (close == std::string::npos) return {pattern};
  std::vector<std::string> expanded;
  for (const auto& item : alternatives(pattern.substr(open + 1, close - open - 1), pattern)) {
    for (auto& rest : expand_braces(pattern.substr(close + 1))) {
      expanded.push_back(pattern.substr(0, open) + item + rest);
    }
  }
  return expanded;
}

std::vector<std::filesystem::path> expand_glob(const std::string& pattern) {
  glob_t found{};
  std::vector<std::filesystem::path> paths;
  if (::glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  std::erase_if(paths, [](const auto& path) { return std::filesystem::is_directory(path); });
  return paths;
}

std::vector<std::filesystem::path> tar_files_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool is_tar = name.find(".tar") != std::string::npos || name.ends_with(".tgz");
    if (is_tar && entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

[[noreturn]] void fail_missing(const std::string& path, const std::string& got) {
  throw ConfigError(Problem{.place = path,
                            .expected = "tar shards",
                            .got = got,
                            .hint = "paths in a config are relative to the config file"});
}

}  // namespace

std::vector<std::filesystem::path> expand_shards(const std::filesystem::path& pattern) {
  if (pattern.empty()) fail_missing("data source", "an empty path");
  std::vector<std::filesystem::path> shards;
  const bool literal = std::filesystem::exists(pattern);
  for (const auto& item : literal ? std::vector<std::string>{pattern.string()} : expand_braces(pattern.string())) {
    if (std::filesystem::is_directory(item)) {
      const auto inside = tar_files_in(item);
      if (inside.empty()) fail_missing(item, "a folder without .tar files");
      shards.insert(shards.end(), inside.begin(), inside.end());
    } else if (std::filesystem::exists(item)) {
      shards.emplace_back(item);
    } else if (item.find_first_of("*?[") != std::string::npos) {
      const auto matches = expand_glob(item);
      if (matches.empty()) fail_missing(item, "no file that matches");
      shards.insert(shards.end(), matches.begin(), matches.end());
    } else {
      fail_missing(item, "no such file");
    }
  }
  return shards;
}

std::unique_ptr<Source> open_source(const SourceConfig& config) {
  return open_tar_source(expand_shards(config.path), config.max_samples);
}

}  // namespace dalle::data

#include "dalle/core/error.h"

#include <algorithm>
#include <numeric>

namespace dalle {

std::string to_string(const Problem& problem) {
  std::string text = problem.place;
  if (!problem.expected.empty()) text += (text.empty() ? "" : ": ") + ("expected " + problem.expected);
  if (!problem.got.empty()) text += (problem.expected.empty() ? ": " : ", got ") + problem.got;
  if (!problem.hint.empty()) text += "\n  hint: " + problem.hint;
  return text;
}

namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace dalle

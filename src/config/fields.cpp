#include "dalle/config/fields.h"

#include <charconv>
#include <cmath>

#include "dalle/core/str.h"

namespace dalle::config {
namespace detail {

std::string join_names(const std::vector<std::string>& names, const char* separator) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : separator) + name;
  return text;
}

std::string describe_node(const Node& node) {
  switch (node.kind) {
    case Node::Kind::kNull:
      return "null";
    case Node::Kind::kScalar:
      return node.scalar;
    case Node::Kind::kList: {
      std::string text;
      for (const auto& item : node.list) text += (text.empty() ? "" : ", ") + describe_node(item);
      return "[" + text + "]";
    }
    case Node::Kind::kMap:
      return "a section";
  }
  return "";
}

void fail(const Node& node, const std::string& path, const std::string& expected, const std::string& hint) {
  const std::string got = node.kind == Node::Kind::kScalar ? "'" + node.scalar + "'" : describe_node(node);
  throw ConfigError(Problem{str(node.place(), path.empty() ? "" : " (" + path + ")"), expected, got, hint});
}

void fail_unknown_key(const Node& node, const std::string& path, const std::vector<std::string>& known) {
  const size_t dot = path.rfind('.');
  const std::string key = dot == std::string::npos ? path : path.substr(dot + 1);
  const std::string near = nearest_name(key, known);
  throw ConfigError(
      Problem{str(node.place(), ": unknown key '", path, "'"), "", "",
              near.empty() ? "known keys here: " + join_names(known, ", ") : "did you mean '" + near + "'?"});
}

namespace {
void require_scalar(const Node& node, const std::string& path, const std::string& expected) {
  if (node.kind != Node::Kind::kScalar) fail(node, path, expected);
}
}  // namespace

bool to_bool(const Node& node, const std::string& path) {
  require_scalar(node, path, "true or false");
  if (!node.quoted && node.scalar == "true") return true;
  if (!node.quoted && node.scalar == "false") return false;
  fail(node, path, "true or false");
}

namespace {
// A text in quotes is no number, even if it looks like one.
std::optional<double> finite_number(const Node& node) {
  double value = 0;
  const char* end = node.scalar.data() + node.scalar.size();
  const auto [stop, error] = std::from_chars(node.scalar.data(), end, value);
  if (node.quoted || error != std::errc() || stop != end || !std::isfinite(value)) return std::nullopt;
  return value;
}
}  // namespace

double to_double(const Node& node, const std::string& path) {
  require_scalar(node, path, "a number");
  const auto value = finite_number(node);
  if (!value) fail(node, path, "a number");
  return *value;
}

int64_t to_integer(const Node& node, const std::string& path) {
  require_scalar(node, path, "an integer");
  int64_t value = 0;
  std::string digits = node.scalar;
  std::erase(digits, '_');  // 1_200_000
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (!node.quoted && error == std::errc() && stop == digits.data() + digits.size()) return value;
  // 1e6 is an integer too.
  const auto number = node.scalar.find_first_of("eE") == std::string::npos ? std::nullopt : finite_number(node);
  if (number && *number == std::floor(*number) && std::abs(*number) < 9e15) return static_cast<int64_t>(*number);
  fail(node, path, "an integer");
}

std::string to_text(const Node& node, const std::string& path) {
  if (node.kind == Node::Kind::kNull) return "";
  require_scalar(node, path, "a text");
  return node.scalar;
}

std::filesystem::path to_path(const Node& node, const std::string& path) {
  const std::string text = to_text(node, path);
  if (text.empty()) return {};
  const std::filesystem::path given(text);
  const bool from_file = !node.file.empty() && !node.file.starts_with("--");  // flags are relative to the caller
  if (given.is_absolute()) return given.lexically_normal();
  const std::filesystem::path base =
      from_file ? std::filesystem::path(node.file).parent_path() : std::filesystem::path();
  return std::filesystem::absolute(base / given).lexically_normal();
}

std::string double_text(double value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return error == std::errc() ? std::string(buffer, end) : std::to_string(value);
}

void check_range(const Node& node, const std::string& path, double value, const FieldOptions& options) {
  if (value >= options.min && value <= options.max) return;
  std::string expected = "a number";
  if (std::isfinite(options.min)) expected += " >= " + double_text(options.min);
  if (std::isfinite(options.max))
    expected += (std::isfinite(options.min) ? " and" : "") + (" <= " + double_text(options.max));
  fail(node, path, expected);
}

}  // namespace detail

bool is_changeable(const std::vector<FieldDescription>& rows, const std::string& path) {
  // List indices are written [] in descriptions; a list of plain values is one row.
  std::string general;
  for (size_t i = 0; i < path.size(); ++i) {
    general += path[i];
    if (path[i] == '[') {
      while (i + 1 < path.size() && path[i + 1] != ']') ++i;
    }
  }
  std::string plain_list = general;
  if (plain_list.ends_with("[]")) plain_list.resize(plain_list.size() - 2);
  for (const auto& row : rows) {
    if (row.path == general || row.path == plain_list) return row.changeable;
  }
  return false;
}

}  // namespace dalle::config

#include "dalle/config/node.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "dalle/core/error.h"

namespace dalle::config {

Node Node::of_scalar(std::string text, bool quoted) {
  Node node;
  node.kind = Kind::kScalar;
  node.scalar = std::move(text);
  node.quoted = quoted;
  return node;
}

const Node* Node::find(const std::string& key) const {
  for (const auto& [name, child] : map) {
    if (name == key) return &child;
  }
  return nullptr;
}

Node* Node::find(const std::string& key) { return const_cast<Node*>(std::as_const(*this).find(key)); }

Node& Node::set(const std::string& key, Node value) {
  if (Node* existing = find(key)) return *existing = std::move(value);
  return map.emplace_back(key, std::move(value)).second;
}

std::string Node::place() const {
  if (file.empty()) return "default";
  return line > 0 ? file + ":" + std::to_string(line) : file;
}

namespace {

struct Step {
  std::string key;     // a map key, or
  int64_t index = -1;  // a list index
};

// "a[0].b" -> {a}, {0}, {b}. Empty on a malformed path.
std::vector<Step> parse_path(const std::string& path) {
  std::vector<Step> steps;
  size_t at = 0;
  while (at < path.size()) {
    if (path[at] == '[') {
      const size_t close = path.find(']', at);
      if (close == std::string::npos) return {};
      int64_t index = -1;
      const auto [end, error] = std::from_chars(path.data() + at + 1, path.data() + close, index);
      if (error != std::errc() || end != path.data() + close || index < 0) return {};
      steps.push_back({"", index});
      at = close + 1;
      if (at == path.size() || path[at] == '[') continue;
      if (path[at] != '.' || at + 1 == path.size()) return {};
      ++at;
    } else {
      const size_t end = std::min(path.find_first_of(".[", at), path.size());
      if (end == at) return {};
      steps.push_back({path.substr(at, end - at), -1});
      at = end < path.size() && path[end] == '.' ? end + 1 : end;
      if (end + 1 == path.size()) return {};  // trailing dot or bracket
    }
  }
  return steps;
}

void mark_place(Node& node, const std::string& file) {
  node.file = file;
  node.line = 0;
  for (auto& child : node.list) mark_place(child, file);
  for (auto& entry : node.map) mark_place(entry.second, file);
}

void flatten(const Node& node, const std::string& path, std::vector<std::pair<std::string, std::string>>& leaves) {
  switch (node.kind) {
    case Node::Kind::kNull:
      leaves.emplace_back(path, "null");
      return;
    case Node::Kind::kScalar:
      leaves.emplace_back(path, node.scalar);
      return;
    case Node::Kind::kList:
      if (node.list.empty()) leaves.emplace_back(path, "[]");
      for (size_t i = 0; i < node.list.size(); ++i) flatten(node.list[i], path + "[" + std::to_string(i) + "]", leaves);
      return;
    case Node::Kind::kMap:
      if (node.map.empty()) leaves.emplace_back(path, "{}");
      for (const auto& [key, child] : node.map) flatten(child, path.empty() ? key : path + "." + key, leaves);
      return;
  }
}

}  // namespace

void apply_set(Node& root, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  const std::vector<Step> steps =
      equals == std::string::npos ? std::vector<Step>{} : parse_path(assignment.substr(0, equals));
  if (steps.empty()) {
    throw ConfigError(Problem{"--set " + assignment,
                              "key=value, for example trainer.num_steps=100 or data.sources[0].path=x.tar", "", ""});
  }
  Node value = parse_yaml(assignment.substr(equals + 1), "--set " + assignment);
  mark_place(value, "--set " + assignment);
  Node* at = &root;
  for (const Step& step : steps) {
    if (step.index < 0) {
      if (at->kind == Node::Kind::kNull) at->kind = Node::Kind::kMap;
      if (at->kind != Node::Kind::kMap) {
        throw ConfigError(
            Problem{"--set " + assignment, "a section above '" + step.key + "'", "a value or a list", ""});
      }
      Node* child = at->find(step.key);
      at = child != nullptr ? child : &at->set(step.key, Node{});
      continue;
    }
    if (at->kind == Node::Kind::kNull) at->kind = Node::Kind::kList;
    const int64_t size = static_cast<int64_t>(at->list.size());
    if (at->kind != Node::Kind::kList) {
      throw ConfigError(Problem{"--set " + assignment, "a list above [" + std::to_string(step.index) + "]",
                                "a value or a section", ""});
    }
    if (step.index > size) {
      throw ConfigError(Problem{"--set " + assignment,
                                "an index from 0 to " + std::to_string(size) + " (that many adds an item)",
                                std::to_string(step.index), ""});
    }
    if (step.index == size) at->list.emplace_back();
    at = &at->list[static_cast<size_t>(step.index)];
  }
  *at = std::move(value);
}

std::vector<Difference> diff(const Node& before, const Node& after) {
  std::vector<std::pair<std::string, std::string>> left, right;
  flatten(before, "", left);
  flatten(after, "", right);
  const std::map<std::string, std::string> right_values(right.begin(), right.end());
  const std::map<std::string, std::string> left_values(left.begin(), left.end());
  std::vector<Difference> differences;
  for (const auto& [path, value] : left) {
    const auto other = right_values.find(path);
    if (other == right_values.end()) {
      differences.push_back({path, value, ""});
    } else if (other->second != value) {
      differences.push_back({path, value, other->second});
    }
  }
  for (const auto& [path, value] : right) {
    if (!left_values.contains(path)) differences.push_back({path, "", value});
  }
  return differences;
}

}  // namespace dalle::config

// A config as a neutral tree that remembers where each value was written. yaml-cpp stays behind parse/emit in yaml.cpp;
// everything above (load, dump, --set, diff) works on this tree.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace dalle::config {

struct Node {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string scalar;
  bool quoted = false;  // written in quotes: a string even if it looks like a number
  std::vector<Node> list;
  std::vector<std::pair<std::string, Node>> map;  // in the order written
  std::string file;                               // "" for --set and defaults
  int line = 0;                                   // 1-based; 0 where unknown

  static Node of_scalar(std::string text, bool quoted = false);
  static Node of_list() { return with_kind(Kind::kList); }
  static Node of_map() { return with_kind(Kind::kMap); }

  const Node* find(const std::string& key) const;
  Node* find(const std::string& key);
  Node& set(const std::string& key, Node value);
  /// "FILE:LINE", "--set" or "default".
  std::string place() const;

 private:
  static Node with_kind(Kind kind) {
    Node node;
    node.kind = kind;
    return node;
  }
};

/// Reads a YAML file. Throws ConfigError with FILE:LINE for syntax errors, duplicate keys and a missing file.
Node parse_yaml_file(const std::filesystem::path& path);
/// The same for a text; `file` is used in messages.
Node parse_yaml(const std::string& text, const std::string& file);

/// YAML text that parses back to the same tree. `comments` are not kept.
std::string emit_yaml(const Node& node);

/// Applies "a[0].b=VALUE" (VALUE is YAML). Throws ConfigError for a malformed assignment or an index out of range.
void apply_set(Node& root, const std::string& assignment);

struct Difference {
  std::string path;    // "a[0].b"
  std::string before;  // "" where absent
  std::string after;
};

/// Leaves that differ, in the order of `before`, then those only in `after`.
std::vector<Difference> diff(const Node& before, const Node& after);

}  // namespace dalle::config

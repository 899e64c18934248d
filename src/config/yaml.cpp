// The only file that sees yaml-cpp.
#include <yaml-cpp/yaml.h>

#include <set>

#include "dalle/config/node.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"

namespace dalle::config {
namespace {

Node convert(const YAML::Node& yaml, const std::string& file) {
  Node node;
  node.file = file;
  node.line = yaml.Mark().line + 1;
  switch (yaml.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      break;
    case YAML::NodeType::Scalar:
      node.kind = Node::Kind::kScalar;
      node.scalar = yaml.Scalar();
      node.quoted = yaml.Tag() == "!";  // yaml-cpp's mark of a quoted scalar
      break;
    case YAML::NodeType::Sequence:
      node.kind = Node::Kind::kList;
      for (const auto& item : yaml) node.list.push_back(convert(item, file));
      break;
    case YAML::NodeType::Map: {
      node.kind = Node::Kind::kMap;
      std::set<std::string> seen;
      for (const auto& entry : yaml) {
        const std::string key = entry.first.Scalar();
        const int line = entry.first.Mark().line + 1;
        if (!entry.first.IsScalar()) throw ConfigError(str(file, ":", line, ": a key must be a plain word"));
        if (!seen.insert(key).second) throw ConfigError(str(file, ":", line, ": the key '", key, "' is given twice"));
        Node child = convert(entry.second, file);
        child.line = line;
        node.map.emplace_back(key, std::move(child));
      }
      break;
    }
  }
  return node;
}

void emit(YAML::Emitter& out, const Node& node) {
  switch (node.kind) {
    case Node::Kind::kNull:
      out << YAML::Null;
      return;
    case Node::Kind::kScalar:
      if (node.quoted) {
        out << YAML::DoubleQuoted << node.scalar;
      } else {
        out << node.scalar;
      }
      return;
    case Node::Kind::kList: {
      bool flat = true;
      for (const auto& item : node.list) flat = flat && item.kind == Node::Kind::kScalar;
      if (flat) out << YAML::Flow;
      out << YAML::BeginSeq;
      for (const auto& item : node.list) emit(out, item);
      out << YAML::EndSeq;
      return;
    }
    case Node::Kind::kMap:
      out << YAML::BeginMap;
      for (const auto& [key, child] : node.map) {
        out << YAML::Key << key << YAML::Value;
        emit(out, child);
      }
      out << YAML::EndMap;
      return;
  }
}

}  // namespace

Node parse_yaml(const std::string& text, const std::string& file) {
  try {
    return convert(YAML::Load(text), file);
  } catch (const YAML::Exception& error) {
    throw ConfigError(str(file, ":", error.mark.line + 1, ": not valid YAML: ", error.msg));
  }
}

Node parse_yaml_file(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw ConfigError(
        Problem{path.string(), "a config file", "nothing there", "the demo's configs are in configs/demo"});
  }
  return parse_yaml(read_file(path), path.string());
}

std::string emit_yaml(const Node& node) {
  YAML::Emitter out;
  out.SetIndent(2);
  emit(out, node);
  return std::string(out.c_str()) + "\n";
}

}  // namespace dalle::config

// A config field is written once: a struct lists its fields in visit_fields, and load, dump, describe, --set, diff and
// the documentation are visitors over that list.
//
//   struct OptimConfig {
//     double lr = 1e-4;
//     static void visit_fields(auto& self, auto&& field) {
//       field("lr", self.lr, "peak learning rate", {.min = 0, .changeable = true});
//     }
//     void validate(const std::string& place) const;  // optional: cross-field rules, throws ConfigError
//   };
//
// Field types: bool, int, int64_t, double, std::string, std::filesystem::path (relative to the config file), enums with
// EnumNames, nested structs, std::optional, std::vector of any of these, and std::variant of structs that have a
// `static constexpr std::string_view kType`, chosen by the key `type`.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "dalle/config/node.h"
#include "dalle/core/enum_names.h"
#include "dalle/core/error.h"

namespace dalle::config {

struct FieldOptions {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  std::string unit;         // "steps", "seconds", "pixels"
  bool changeable = false;  // may differ when a run is resumed
};

/// One row of help and docs.
struct FieldDescription {
  std::string path;  // "trainer.batch_size", "data.sources[].path"
  std::string type;
  std::string unit;
  std::string default_value;
  std::string help;
  bool changeable = false;
};

template <class T>
concept Visitable = requires(T& t) {
  T::visit_fields(t, [](auto&&...) {});
};

template <class T>
concept Validated = requires(const T& t) {
  t.validate(std::string{});
};

namespace detail {
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
template <class T>
inline constexpr bool is_variant = false;
template <class... T>
inline constexpr bool is_variant<std::variant<T...>> = true;

inline std::string join(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}
std::string join_names(const std::vector<std::string>& names, const char* separator);

// Scalar conversions; each throws ConfigError with the node's place, the path, what was expected and what came.
bool to_bool(const Node& node, const std::string& path);
int64_t to_integer(const Node& node, const std::string& path);
double to_double(const Node& node, const std::string& path);
std::string to_text(const Node& node, const std::string& path);
std::filesystem::path to_path(const Node& node, const std::string& path);
std::string double_text(double value);  // shortest text that parses back to the same value
[[noreturn]] void fail(const Node& node, const std::string& path, const std::string& expected,
                       const std::string& hint = "");
[[noreturn]] void fail_unknown_key(const Node& node, const std::string& path, const std::vector<std::string>& known);
void check_range(const Node& node, const std::string& path, double value, const FieldOptions& options);
std::string describe_node(const Node& node);
}  // namespace detail

template <class T>
Node dump(const T& value);

template <class T>
std::string type_name(const FieldOptions& options);

template <class T>
void load(const Node& node, T& value, const std::string& path = "", const FieldOptions& options = {});

// ---------------------------------------------------------------------------------------------------------------- load

namespace detail {

template <class... T>
void load_variant(const Node& node, std::variant<T...>& value, const std::string& path) {
  if (node.kind != Node::Kind::kMap) fail(node, path, "a section with a key 'type'");
  const Node* type = node.find("type");
  const std::vector<std::string> known{std::string(T::kType)...};
  if (type == nullptr) fail(node, path, "a key 'type', one of: " + join_names(known, ", "));
  const std::string name = to_text(*type, join(path, "type"));
  Node rest = node;
  std::erase_if(rest.map, [](const auto& entry) { return entry.first == "type"; });
  bool found = false;
  auto attempt = [&]<class Alternative>() {
    if (found || name != Alternative::kType) return;
    found = true;
    Alternative alternative{};
    load(rest, alternative, path);
    value = std::move(alternative);
  };
  (attempt.template operator()<T>(), ...);
  if (!found) fail(*type, join(path, "type"), "one of: " + join_names(known, ", "));
}

template <class T>
void load_struct(const Node& node, T& value, const std::string& path) {
  if (node.kind == Node::Kind::kNull) return;  // "section:" with nothing below keeps the defaults
  if (node.kind != Node::Kind::kMap) fail(node, path, "a section (key: value lines)");
  std::vector<std::string> known;
  T::visit_fields(value, [&](const char* name, auto& member, const char* /*help*/, FieldOptions options = {}) {
    known.emplace_back(name);
    if (const Node* child = node.find(name)) load(*child, member, join(path, name), options);
  });
  for (const auto& [key, child] : node.map) {
    if (std::find(known.begin(), known.end(), key) == known.end()) fail_unknown_key(child, join(path, key), known);
  }
}

}  // namespace detail

template <class T>
void load(const Node& node, T& value, const std::string& path, const FieldOptions& options) {
  using namespace detail;
  if constexpr (is_optional<T>) {
    if (node.kind == Node::Kind::kNull) {
      value.reset();
    } else {
      load(node, value.emplace(), path, options);
    }
  } else if constexpr (is_vector<T>) {
    if (node.kind != Node::Kind::kList) fail(node, path, "a list");
    value.clear();
    for (size_t i = 0; i < node.list.size(); ++i) {
      load(node.list[i], value.emplace_back(), path + "[" + std::to_string(i) + "]", options);
    }
  } else if constexpr (is_variant<T>) {
    load_variant(node, value, path);
  } else if constexpr (Visitable<T>) {
    load_struct(node, value, path);
    if constexpr (Validated<T>) value.validate(path.empty() ? node.place() : node.place() + " (" + path + ")");
  } else if constexpr (std::same_as<T, bool>) {
    value = to_bool(node, path);
  } else if constexpr (std::integral<T>) {
    const int64_t number = to_integer(node, path);
    check_range(node, path, static_cast<double>(number), options);
    if (!std::in_range<T>(number)) fail(node, path, "an integer that fits " + std::to_string(8 * sizeof(T)) + " bits");
    value = static_cast<T>(number);
  } else if constexpr (std::floating_point<T>) {
    value = to_double(node, path);
    check_range(node, path, value, options);
  } else if constexpr (std::same_as<T, std::string>) {
    value = to_text(node, path);
  } else if constexpr (std::same_as<T, std::filesystem::path>) {
    value = to_path(node, path);
  } else {
    static_assert(NamedEnum<T>, "no EnumNames for this field's type");
    if (node.kind != Node::Kind::kScalar || !parse_enum(node.scalar, value)) {
      fail(node, path, "one of: " + join_names(enum_name_list<T>(), ", "));
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------- dump

template <class T>
Node dump(const T& value) {
  using namespace detail;
  if constexpr (is_optional<T>) {
    return value ? dump(*value) : Node{};
  } else if constexpr (is_vector<T>) {
    Node node = Node::of_list();
    for (const auto& item : value) node.list.push_back(dump(item));
    return node;
  } else if constexpr (is_variant<T>) {
    return std::visit(
        [](const auto& alternative) {
          Node node = dump(alternative);
          node.map.insert(node.map.begin(), {"type", Node::of_scalar(std::string(alternative.kType))});
          return node;
        },
        value);
  } else if constexpr (Visitable<T>) {
    Node node = Node::of_map();
    // visit_fields takes a mutable self so that one list serves load and dump; dump does not change it.
    T::visit_fields(const_cast<T&>(value), [&](const char* name, const auto& member, const char*, FieldOptions = {}) {
      node.set(name, dump(member));
    });
    return node;
  } else if constexpr (std::same_as<T, bool>) {
    return Node::of_scalar(value ? "true" : "false");
  } else if constexpr (std::integral<T>) {
    return Node::of_scalar(std::to_string(value));
  } else if constexpr (std::floating_point<T>) {
    return Node::of_scalar(double_text(value));
  } else if constexpr (std::same_as<T, std::string>) {
    return Node::of_scalar(value, true);
  } else if constexpr (std::same_as<T, std::filesystem::path>) {
    return Node::of_scalar(value.string(), true);
  } else {
    return Node::of_scalar(std::string(enum_name(value)));
  }
}

// ------------------------------------------------------------------------------------------------------------ describe

template <class T>
std::string type_name(const FieldOptions& options) {
  using namespace detail;
  if constexpr (is_optional<T>) {
    return type_name<typename T::value_type>(options) + " or null";
  } else if constexpr (is_vector<T>) {
    return "list of " + type_name<typename T::value_type>(options);
  } else if constexpr (std::same_as<T, bool>) {
    return "bool";
  } else if constexpr (std::integral<T>) {
    return "int";
  } else if constexpr (std::floating_point<T>) {
    return "float";
  } else if constexpr (std::same_as<T, std::string>) {
    return "string";
  } else if constexpr (std::same_as<T, std::filesystem::path>) {
    return "path";
  } else if constexpr (NamedEnum<T>) {
    return join_names(enum_name_list<T>(), "|");
  } else {
    return "section";
  }
}

template <class T>
void describe_into(const T& value, const std::string& path, std::vector<FieldDescription>& rows);

namespace detail {

/// The key `type`, then the keys of every alternative, each of which says for which type it holds.
template <class... T>
void describe_variant(const std::variant<T...>& value, const std::string& path, const char* help,
                      const FieldOptions& options, std::vector<FieldDescription>& rows) {
  const std::string chosen = std::visit([](const auto& held) { return std::string(held.kType); }, value);
  rows.push_back(
      {join(path, "type"), join_names({std::string(T::kType)...}, "|"), "", chosen, help, options.changeable});
  auto describe_one = [&]<class Alternative>() {
    const Alternative* held = std::get_if<Alternative>(&value);
    const size_t first = rows.size();
    describe_into(held != nullptr ? *held : Alternative{}, path, rows);
    for (size_t i = first; i < rows.size(); ++i) rows[i].help += " (type " + std::string(Alternative::kType) + ")";
  };
  (describe_one.template operator()<T>(), ...);
}

template <class M>
void describe_field(const M& member, const std::string& path, const char* help, const FieldOptions& options,
                    std::vector<FieldDescription>& rows) {
  if constexpr (Visitable<M>) {
    describe_into(member, path, rows);
  } else if constexpr (is_variant<M>) {
    describe_variant(member, path, help, options, rows);
  } else if constexpr (is_vector<M>) {
    if constexpr (Visitable<typename M::value_type>) {
      rows.push_back({path, "list of sections", "", "[]", help, options.changeable});
      describe_into(typename M::value_type{}, path + "[]", rows);
    } else {
      rows.push_back(
          {path, type_name<M>(options), options.unit, describe_node(dump(member)), help, options.changeable});
    }
  } else if constexpr (is_optional<M>) {
    if constexpr (Visitable<typename M::value_type>) {
      rows.push_back({path, "section or null", "", member ? "section" : "null", help, options.changeable});
      describe_into(typename M::value_type{}, path, rows);
    } else {
      rows.push_back(
          {path, type_name<M>(options), options.unit, describe_node(dump(member)), help, options.changeable});
    }
  } else {
    rows.push_back({path, type_name<M>(options), options.unit, describe_node(dump(member)), help, options.changeable});
  }
}

}  // namespace detail

template <class T>
void describe_into(const T& value, const std::string& path, std::vector<FieldDescription>& rows) {
  T::visit_fields(const_cast<T&>(value),
                  [&](const char* name, const auto& member, const char* help, FieldOptions options = {}) {
                    detail::describe_field(member, detail::join(path, name), help, options, rows);
                  });
}

/// Every field of T with its default, in order.
template <class T>
std::vector<FieldDescription> describe() {
  std::vector<FieldDescription> rows;
  describe_into(T{}, "", rows);
  return rows;
}

/// Loads, checks unknown keys, types, ranges and cross-field rules. Throws ConfigError.
template <class T>
T load_config(const Node& node) {
  T value{};
  load(node, value);
  return value;
}

template <class T>
T load_config_file(const std::filesystem::path& path) {
  return load_config<T>(parse_yaml_file(path));
}

/// True where `path` ("data.sources[1].path") names a field that may change on resume.
bool is_changeable(const std::vector<FieldDescription>& rows, const std::string& path);

}  // namespace dalle::config

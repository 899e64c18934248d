// One table from enum value to name, used by YAML, help texts and logs. Specialise EnumNames<E> beside the enum.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dalle {

template <class E>
struct EnumName {
  E value;
  std::string_view name;
};

template <class E>
struct EnumNames;  // { static constexpr EnumName<E> values[] = {...}; }

template <class E>
concept NamedEnum = requires {
  EnumNames<E>::values;
};

template <NamedEnum E>
std::string_view enum_name(E value) {
  for (const auto& entry : EnumNames<E>::values) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

/// True and sets `value` where `name` is one of E's names.
template <NamedEnum E>
bool parse_enum(std::string_view name, E& value) {
  for (const auto& entry : EnumNames<E>::values) {
    if (entry.name == name) {
      value = entry.value;
      return true;
    }
  }
  return false;
}

template <NamedEnum E>
std::vector<std::string> enum_name_list() {
  std::vector<std::string> names;
  for (const auto& entry : EnumNames<E>::values) names.emplace_back(entry.name);
  return names;
}

}  // namespace dalle

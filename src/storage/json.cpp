#include "json.h"

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::storage {
namespace {

constexpr size_t kMaxLevels = 8;

[[noreturn]] void fail_json(const std::string& place, const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{.place = place, .expected = expected, .got = got});
}

std::string short_text(const Json& json) {
  std::string text = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& place) {
  std::vector<std::set<std::string>> keys;
  size_t levels = 0;
  auto check = [&](int, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::object_start || event == Event::array_start) {
      if (++levels > kMaxLevels) fail_json(place, str("at most ", kMaxLevels, " levels of JSON"), "more");
    }
    if (event == Event::object_end || event == Event::array_end) --levels;
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      fail_json(place, "each key once", str("two of ", short_text(parsed)));
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& error) {
    fail_json(place, "valid JSON", error.what());
  }
}

std::string dump_json(const Json& json, const std::string& place, int indent) {
  try {
    return json.dump(indent);
  } catch (const Json::exception& error) {
    fail_json(place, "texts in UTF-8", error.what());
  }
}

const Json& require(const Json& object, const std::string& key, const std::string& place) {
  if (!object.is_object()) fail_json(place, "a JSON object", short_text(object));
  const auto found = object.find(key);
  if (found == object.end()) fail_json(place, str("a key '", key, "'"), "none");
  return *found;
}

const Json& require_object(const Json& object, const std::string& key, const std::string& place) {
  const Json& value = require(object, key, place);
  if (!value.is_object()) fail_json(place, str("an object in '", key, "'"), short_text(value));
  return value;
}

std::string require_string(const Json& object, const std::string& key, const std::string& place) {
  const Json& value = require(object, key, place);
  if (!value.is_string()) fail_json(place, str("a string in '", key, "'"), short_text(value));
  return value.get<std::string>();
}

int64_t require_integer(const Json& object, const std::string& key, const std::string& place) {
  const Json& value = require(object, key, place);
  const bool fits =
      value.is_number_integer() && (!value.is_number_unsigned() || std::in_range<int64_t>(value.get<uint64_t>()));
  if (!fits) fail_json(place, str("a 64-bit integer in '", key, "'"), short_text(value));
  return value.get<int64_t>();
}

Json json_of_double(double value) {
  if (std::isfinite(value)) return value;
  if (std::isnan(value)) return "nan";
  return value > 0 ? "inf" : "-inf";
}

double require_double(const Json& object, const std::string& key, const std::string& place) {
  const Json& value = require(object, key, place);
  if (value.is_number()) return value.get<double>();
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  fail_json(place, str("a number in '", key, "'"), short_text(value));
}

}  // namespace dalle::storage

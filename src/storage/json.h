// Strict JSON reading for untrusted files: duplicate keys and wrong types are CheckpointErrors that name the place.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace dalle::storage {

using Json = nlohmann::ordered_json;

/// Throws CheckpointError for bad syntax, bad UTF-8, a key given twice and more than 8 levels.
Json parse_json(std::string_view text, const std::string& place);

/// Text of `json`; `indent` as in nlohmann::json::dump. Throws CheckpointError for strings that are not UTF-8.
std::string dump_json(const Json& json, const std::string& place, int indent = -1);

/// Members of an object, with a CheckpointError where the key is missing or of another type.
const Json& require(const Json& object, const std::string& key, const std::string& place);
const Json& require_object(const Json& object, const std::string& key, const std::string& place);
std::string require_string(const Json& object, const std::string& key, const std::string& place);
int64_t require_integer(const Json& object, const std::string& key, const std::string& place);

/// A number or "nan", "inf", "-inf", which JSON has no numbers for.
Json json_of_double(double value);
double require_double(const Json& object, const std::string& key, const std::string& place);

}  // namespace dalle::storage

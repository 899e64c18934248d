#include "checkpoint_state.h"

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "json.h"

namespace dalle::storage {

std::string state_text(const Checkpoint& checkpoint, const std::string& place) {
  Json scalars = Json::object();
  for (const auto& [name, value] : checkpoint.scalars) scalars[name] = json_of_double(value);
  const Json json = {{"format_version", kCheckpointFormatVersion},
                     {"kind", checkpoint.kind},
                     {"step", checkpoint.step},
                     {"samples_seen", checkpoint.samples_seen},
                     {"identities", Json(checkpoint.identities)},
                     {"scalars", scalars},
                     {"model_config", checkpoint.model_config_yaml},
                     {"config", checkpoint.config_yaml}};
  return dump_json(json, place, 2) + "\n";
}

Checkpoint parse_state(const std::string& text, const std::string& place) {
  const Json json = parse_json(text, place);
  const int64_t version = require_integer(json, "format_version", place);
  if (version != kCheckpointFormatVersion) {
    throw CheckpointError(Problem{.place = place,
                                  .expected = str("format version ", kCheckpointFormatVersion),
                                  .got = str(version),
                                  .hint = "it was written by another version of dalle.cpp"});
  }
  Checkpoint checkpoint;
  checkpoint.kind = require_string(json, "kind", place);
  checkpoint.step = require_integer(json, "step", place);
  checkpoint.samples_seen = require_integer(json, "samples_seen", place);
  checkpoint.model_config_yaml = require_string(json, "model_config", place);
  checkpoint.config_yaml = require_string(json, "config", place);
  const Json& identities = require_object(json, "identities", place);
  for (const auto& item : identities.items()) {
    checkpoint.identities[item.key()] = require_string(identities, item.key(), place);
  }
  const Json& scalars = require_object(json, "scalars", place);
  for (const auto& item : scalars.items()) {
    checkpoint.scalars[item.key()] = require_double(scalars, item.key(), place);
  }
  return checkpoint;
}

}  // namespace dalle::storage

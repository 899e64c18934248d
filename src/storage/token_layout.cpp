#include "token_layout.h"

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "json.h"

namespace dalle::storage {
namespace {

constexpr int64_t kMaxGridSize = 1 << 15;
constexpr int64_t kMaxVocabSize = int64_t{1} << 31;
constexpr int64_t kMaxCount = int64_t{1} << 48;

void require_range(const std::string& place, const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  throw CheckpointError(Problem{.place = place,
                                .expected = str(name, " from ", low, " to ", high),
                                .got = str(value),
                                .hint = "the file is damaged; make it again with encode-images"});
}

uint64_t checked_add(uint64_t a, uint64_t b, const std::string& place) {
  constexpr uint64_t kLimit = uint64_t{1} << 62;
  if (a > kLimit || b > kLimit - a) {
    throw CheckpointError(Problem{.place = place, .expected = "sections below 2^62 bytes", .got = "more"});
  }
  return a + b;
}

uint64_t checked_multiply(uint64_t a, uint64_t b, const std::string& place) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) checked_add(~uint64_t{0}, 0, place);
  return product;
}

uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

std::map<std::string, std::string> parse_settings(const Json& json, const std::string& place) {
  std::map<std::string, std::string> settings;
  for (const auto& [name, value] : json.items()) settings[name] = require_string(json, name, place);
  return settings;
}

}  // namespace

TokenLayout token_layout(const TokenShardHeader& header, const std::string& place) {
  const auto& info = header.info;
  require_range(place, "picture_size", info.picture_size, 1, kMaxCount);
  require_range(place, "grid_size", info.grid_size, 1, kMaxGridSize);
  require_range(place, "vocab_size", info.vocab_size, 1, kMaxVocabSize);
  require_range(place, "num_crops", info.num_crops, 1, kMaxCount);
  require_range(place, "dataset_size", info.dataset_size, 0, kMaxCount);
  require_range(place, "end_index", header.end_index, 0, info.dataset_size);
  require_range(place, "first_index", header.first_index, 0, header.end_index);
  require_range(place, "num_samples", header.num_samples, 0, header.end_index - header.first_index);
  require_range(place, "num_captions", header.num_captions, 0, kMaxCount);
  require_range(place, "key_bytes", header.key_bytes, 0, kMaxCount);
  require_range(place, "caption_bytes", header.caption_bytes, 0, kMaxCount);
  const auto samples = static_cast<uint64_t>(header.num_samples);
  const auto record = checked_multiply(static_cast<uint64_t>(info.num_crops),
                                       static_cast<uint64_t>(info.tokens_per_crop() * info.token_bytes()), place);
  TokenLayout layout;
  layout.indices = checked_add(checked_multiply(samples, record, place), 7, place) / 8 * 8;
  layout.key_offsets = checked_add(layout.indices, 8 * samples, place);
  layout.caption_starts = checked_add(layout.key_offsets, 8 * (samples + 1), place);
  layout.caption_offsets = checked_add(layout.caption_starts, 8 * (samples + 1), place);
  layout.keys = checked_add(layout.caption_offsets, 8 * (static_cast<uint64_t>(header.num_captions) + 1), place);
  layout.captions = checked_add(layout.keys, static_cast<uint64_t>(header.key_bytes), place);
  layout.end = checked_add(layout.captions, static_cast<uint64_t>(header.caption_bytes), place);
  return layout;
}

std::string token_header_text(const TokenShardHeader& header, const std::string& place) {
  const auto& info = header.info;
  const Json json = {{"format_version", kTokenShardVersion}, {"dvae", info.dvae},
                     {"picture_size", info.picture_size},    {"grid_size", info.grid_size},
                     {"vocab_size", info.vocab_size},        {"token_bytes", info.token_bytes()},
                     {"num_crops", info.num_crops},          {"seed", info.seed},
                     {"dataset_size", info.dataset_size},    {"settings", Json(info.settings)},
                     {"first_index", header.first_index},    {"end_index", header.end_index},
                     {"num_samples", header.num_samples},    {"num_captions", header.num_captions},
                     {"key_bytes", header.key_bytes},        {"caption_bytes", header.caption_bytes}};
  std::string text = dump_json(json, place);
  text.resize(round_up(kTokenPrefixBytes + text.size(), kTokenAlignment) - kTokenPrefixBytes, ' ');
  return text;
}

TokenShardHeader parse_token_header(const std::string& text, const std::string& place) {
  const Json json = parse_json(text, place);
  const int64_t version = require_integer(json, "format_version", place);
  if (version != kTokenShardVersion) {
    throw CheckpointError(Problem{.place = place,
                                  .expected = str("format version ", kTokenShardVersion),
                                  .got = str(version),
                                  .hint = "it was written by another version of dalle.cpp"});
  }
  const auto integer = [&](const char* name) { return require_integer(json, name, place); };
  TokenShardHeader header;
  header.info = {.dvae = require_string(json, "dvae", place),
                 .picture_size = integer("picture_size"),
                 .grid_size = integer("grid_size"),
                 .vocab_size = integer("vocab_size"),
                 .num_crops = integer("num_crops"),
                 .seed = integer("seed"),
                 .dataset_size = integer("dataset_size"),
                 .settings = parse_settings(require_object(json, "settings", place), place)};
  header.first_index = integer("first_index");
  header.end_index = integer("end_index");
  header.num_samples = integer("num_samples");
  header.num_captions = integer("num_captions");
  header.key_bytes = integer("key_bytes");
  header.caption_bytes = integer("caption_bytes");
  require_range(place, "token_bytes", integer("token_bytes"), header.info.token_bytes(), header.info.token_bytes());
  return header;
}

std::string first_difference(const TokenShardInfo& got, const TokenShardInfo& expected) {
  const auto differ = [](const char* name, const auto& a, const auto& b) {
    return a == b ? std::string() : str(name, " is ", a, " where ", b, " was expected");
  };
  for (const auto& text :
       {differ("dvae", got.dvae, expected.dvae), differ("grid_size", got.grid_size, expected.grid_size),
        differ("vocab_size", got.vocab_size, expected.vocab_size),
        differ("picture_size", got.picture_size, expected.picture_size),
        differ("num_crops", got.num_crops, expected.num_crops), differ("seed", got.seed, expected.seed),
        differ("dataset_size", got.dataset_size, expected.dataset_size)}) {
    if (!text.empty()) return text;
  }
  auto names = got.settings;
  names.insert(expected.settings.begin(), expected.settings.end());
  const auto value_of = [](const std::map<std::string, std::string>& settings, const std::string& name) {
    const auto found = settings.find(name);
    return found == settings.end() ? std::string("not there") : "'" + found->second + "'";
  };
  for (const auto& [name, value] : names) {
    const auto text = differ(name.c_str(), value_of(got.settings, name), value_of(expected.settings, name));
    if (!text.empty()) return text;
  }
  return "";
}

}  // namespace dalle::storage

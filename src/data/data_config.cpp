#include "dalle/data/data_config.h"

#include <charconv>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::data {

void DataConfig::validate(const std::string& place) const {
  if (sources.empty()) {
    throw ConfigError(Problem{.place = place,
                              .expected = "at least one entry in sources",
                              .got = "none",
                              .hint = "for example: sources: [{path: data/emoji/train.tar}]"});
  }
  parse_background(background);
}

Background parse_background(const std::string& text) {
  if (text == "white") return {255, 255, 255};
  if (text == "black") return {0, 0, 0};
  unsigned value = 0;
  const bool has_form = text.size() == 7 && text[0] == '#';
  const auto parsed = std::from_chars(text.data() + (has_form ? 1 : 0), text.data() + text.size(), value, 16);
  if (!has_form || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
    throw ConfigError(
        Problem{.place = "background", .expected = "white, black or #rrggbb", .got = str("'", text, "'")});
  }
  return {static_cast<uint8_t>(value >> 16), static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)};
}

TransformOptions transform_options(const DataConfig& config, int64_t image_size) {
  return {.image_size = image_size,
          .augmentation = config.augmentation,
          .horizontal_flip = config.horizontal_flip,
          .filter = config.resize_filter,
          .upscale_small = config.upscale_small};
}

}  // namespace dalle::data

// Caption files: plain text with one caption per line, or JSON.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dalle/data/data_config.h"

namespace dalle::data {

struct ParsedCaptions {
  std::vector<std::string> captions;  // trimmed, none empty
  std::string problem;                // why the file cannot be used; "" where it can
};

/// One caption per line; empty lines are dropped, a byte-order mark is skipped. Problem: not UTF-8, with the byte
/// offset.
ParsedCaptions parse_caption_lines(std::string_view text);

/// `captions` (a list of strings) or `caption` (a string) of a JSON object; an object with neither gives no caption.
ParsedCaptions parse_caption_json(std::string_view text);

/// The caption that position `position` of the training order uses: the first, or one drawn by (seed, position), so
/// pictures and their stored tokens are trained on with the same captions. `captions` must not be empty.
const std::string& choose_caption(const std::vector<std::string>& captions, CaptionChoice choice, uint64_t seed,
                                  int64_t position);

}  // namespace dalle::data

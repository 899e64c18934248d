// The text half of picture_writer.h: what is drawn for UTF-8 text, and where lines break.
#include <algorithm>
#include <array>
#include <string_view>

#include "dalle/generation/picture_writer.h"

namespace dalle::generation {
namespace {

constexpr std::string_view kEllipsis = "...";

// ASCII for U+00C0 .. U+00FF.
constexpr std::array<std::string_view, 64> kLatin1 = {
    "A", "A", "A", "A", "A", "A", "AE", "C", "E",  "E",  "E", "E", "I", "I", "I", "I", "D",  "N", "O",  "O", "O", "O",
    "O", "x", "O", "U", "U", "U", "U",  "Y", "Th", "ss", "a", "a", "a", "a", "a", "a", "ae", "c", "e",  "e", "e", "e",
    "i", "i", "i", "i", "d", "n", "o",  "o", "o",  "o",  "o", "/", "o", "u", "u", "u", "u",  "y", "th", "y"};

std::string_view ascii_for(uint32_t code) {
  if (code >= 0xC0 && code <= 0xFF) return kLatin1[code - 0xC0];
  // clang-format off
  switch (code) {
    case 0x00A0: case 0x2009: case 0x202F: return " ";
    case 0x2018: case 0x2019: case 0x201A: case 0x2032: return "'";
    case 0x201C: case 0x201D: case 0x201E: case 0x2033: case 0x00AB: case 0x00BB: return "\"";
    case 0x2010: case 0x2011: case 0x2012: case 0x2013: case 0x2014: case 0x2212: return "-";
    case 0x2026: return kEllipsis;
    case 0x0152: return "OE";
    case 0x0153: return "oe";
    case 0x00B7: case 0x2022: return "*";
    case 0xFE0F: case 0x200D: case 0x200B: return "";  // joiners and variation selectors draw nothing
    default: return "?";
  }
  // clang-format on
}

// Reads one code point; a broken sequence gives U+FFFD and consumes one byte.
uint32_t next_code_point(std::string_view text, size_t& position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(position);
  const int extra = lead < 0x80 ? 0 : lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : -1;
  if (extra < 0 || position + static_cast<size_t>(extra) >= text.size()) return ++position, 0xFFFD;
  uint32_t code = extra == 0 ? lead : lead & (0x3F >> extra);
  for (int i = 1; i <= extra; ++i) {
    const uint8_t next = byte(position + static_cast<size_t>(i));
    if ((next & 0xC0) != 0x80) return ++position, 0xFFFD;
    code = code << 6 | (next & 0x3F);
  }
  position += static_cast<size_t>(extra) + 1;
  return code;
}

// The longest beginning of `text` that fits into `width` together with `ending`, plus the ending.
std::string cut_to_width(std::string text, std::string_view ending, const TextStyle& style, int64_t width) {
  while (!text.empty() && coverage_width(text + std::string(ending), style) > width) text.pop_back();
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text + std::string(ending);
}

std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  for (size_t start = 0; (start = text.find_first_not_of(' ', start)) != std::string::npos;) {
    const size_t end = std::min(text.find(' ', start), text.size());
    words.push_back(text.substr(start, end - start));
    start = end;
  }
  return words;
}

}  // namespace

std::string plain_ascii(const std::string& text) {
  std::string plain;
  for (size_t position = 0; position < text.size();) {
    const uint32_t code = next_code_point(text, position);
    if (code >= 0x20 && code < 0x7F) {
      plain += static_cast<char>(code);
    } else if (code < 0x20 || code == 0x7F) {
      plain += ' ';
    } else {
      plain += ascii_for(code);
    }
  }
  return plain;
}

std::vector<std::string> wrap_text(const std::string& text, const TextStyle& style, int64_t width, int64_t max_lines) {
  std::vector<std::string> lines;
  std::string line;
  const auto fits = [&](const std::string& candidate) { return coverage_width(candidate, style) <= width; };
  for (const std::string& word : split_words(plain_ascii(text))) {
    const std::string longer = line.empty() ? word : line + " " + word;
    if (line.empty() || fits(longer)) {
      line = longer;
    } else if (static_cast<int64_t>(lines.size()) + 1 < max_lines) {
      lines.push_back(line);
      line = word;
    } else {
      lines.push_back(cut_to_width(longer, kEllipsis, style, width));
      line.clear();
      break;
    }
  }
  if (!line.empty()) lines.push_back(line);
  for (std::string& each : lines) {
    if (!fits(each)) each = cut_to_width(each, kEllipsis, style, width);
  }
  return lines;
}

}  // namespace dalle::generation

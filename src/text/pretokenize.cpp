#include "dalle/text/pretokenize.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::text {
namespace {

constexpr char32_t kCapitalSigma = 0x3A3;
constexpr char32_t kFinalSigma = 0x3C2;

/// Reads one code point at `offset` and returns its length in bytes; 0 where the bytes are not valid UTF-8.
size_t read_code_point(std::string_view text, size_t offset, char32_t& code_point) {
  code_point = static_cast<unsigned char>(text[offset]);
  if (code_point < 0x80) return 1;
  utf8proc_int32_t value = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + offset;
  const auto length = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - offset), &value);
  if (length <= 0) return 0;
  code_point = static_cast<char32_t>(value);
  return static_cast<size_t>(length);
}

void append_utf8(std::string& out, char32_t code_point) {
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
    return;
  }
  std::array<utf8proc_uint8_t, 4> bytes{};
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes.data());
  out.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(length));
}

bool is_ascii_letter(char32_t code_point) { return (code_point | 0x20) - U'a' < 26; }

/// `before` and `after` are the neighbours, 0 at an end of the text.
char32_t to_lower(char32_t code_point, char32_t before, char32_t after) {
  if (code_point < 0x80) return code_point - U'A' < 26 ? code_point + 0x20 : code_point;
  if (code_point == kCapitalSigma && is_letter(before) && !is_letter(after) && !is_mark(after)) return kFinalSigma;
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code_point)));
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  char32_t code_point = 0;
  for (size_t offset = 0; offset < text.size();) {
    const size_t length = read_code_point(text, offset, code_point);
    if (length == 0) return offset;
    offset += length;
  }
  return std::nullopt;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const auto [point, length] = code_point_at(text, offset);
    append_utf8(out, point);
    offset += length;
  }
  return out;
}

std::string normalize_caption(std::string_view caption) {
  if (const auto offset = find_invalid_utf8(caption)) {
    throw DataError(Problem{.place = str("caption, byte ", *offset),
                            .expected = "UTF-8 text",
                            .got = str("byte ", static_cast<int>(static_cast<unsigned char>(caption[*offset]))),
                            .hint = "convert the captions to UTF-8, for example with iconv"});
  }
  std::string out;
  out.reserve(caption.size());
  bool pending_space = false;
  char32_t before = 0;
  for (size_t offset = 0; offset < caption.size();) {
    const auto [point, length] = code_point_at(caption, offset);
    offset += length;
    if (is_space(point)) {
      pending_space = !out.empty();
    } else {
      if (pending_space) out += ' ';
      pending_space = false;
      const bool needs_next = point == kCapitalSigma && offset < caption.size();
      append_utf8(out, to_lower(point, before, needs_next ? code_point_at(caption, offset).value : 0));
    }
    before = point;
  }
  return out;
}

std::string_view first_piece(std::string_view text) {
  size_t end = 0;
  char32_t code_point = 0;
  while (end < text.size()) {
    const size_t length = std::max<size_t>(read_code_point(text, end, code_point), 1);
    const bool joins = is_letter(code_point) || (end > 0 && is_mark(code_point));
    if (!joins && end > 0) break;
    end += length;
    if (!joins) break;
  }
  return text.substr(0, end);
}

std::vector<std::string_view> split_pieces(std::string_view text) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    pieces.push_back(first_piece(text));
    text.remove_prefix(pieces.back().size());
  }
  return pieces;
}

CodePoint code_point_at(std::string_view text, size_t offset) {
  CodePoint point;
  const size_t length = read_code_point(text, offset, point.value);
  return length == 0 ? CodePoint{} : CodePoint{point.value, length};
}

std::vector<char32_t> to_code_points(std::string_view text) {
  std::vector<char32_t> points;
  points.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const auto [point, length] = code_point_at(text, offset);
    points.push_back(point);
    offset += length;
  }
  return points;
}

std::string to_utf8(char32_t code_point) {
  std::string out;
  append_utf8(out, code_point);
  return out;
}

bool is_letter(char32_t code_point) {
  if (code_point < 0x80) return is_ascii_letter(code_point);
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_mark(char32_t code_point) {
  if (code_point < 0x80) return false;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

bool is_space(char32_t code_point) {
  if ((code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85) return true;
  if (code_point < 0xA0) return false;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
}

bool is_blank(std::string_view text) {
  for (size_t offset = 0; offset < text.size();) {
    const auto [value, length] = code_point_at(text, offset);
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(value));
    if (!is_space(value) && category != UTF8PROC_CATEGORY_CC && category != UTF8PROC_CATEGORY_CF) return false;
    offset += length;
  }
  return true;
}

size_t num_code_points(std::string_view text) {
  const auto begins = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; };
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), begins));
}

}  // namespace dalle::text

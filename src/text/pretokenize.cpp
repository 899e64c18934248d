#include "dalle/text/pretokenize.h"

#include <utf8proc.h>

#include <array>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::text {
namespace {

constexpr char32_t kCapitalSigma = 0x3A3;
constexpr char32_t kFinalSigma = 0x3C2;

/// Reads one code point at `offset` and returns its length in bytes; 0 where the bytes are not valid UTF-8.
size_t read_code_point(std::string_view text, size_t offset, char32_t& code_point) {
  utf8proc_int32_t value = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + offset;
  const auto length = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - offset), &value);
  if (length <= 0) return 0;
  code_point = static_cast<char32_t>(value);
  return static_cast<size_t>(length);
}

void append_utf8(std::string& out, char32_t code_point) {
  std::array<utf8proc_uint8_t, 4> bytes{};
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes.data());
  out.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(length));
}

char32_t to_lower(const std::vector<char32_t>& points, size_t i) {
  if (points[i] == kCapitalSigma) {
    const bool letter_before = i > 0 && is_letter(points[i - 1]);
    const bool letter_after = i + 1 < points.size() && (is_letter(points[i + 1]) || is_mark(points[i + 1]));
    if (letter_before && !letter_after) return kFinalSigma;
  }
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(points[i])));
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
  char32_t code_point = 0;
  for (size_t offset = 0; offset < text.size();) {
    const size_t length = read_code_point(text, offset, code_point);
    append_utf8(out, length == 0 ? 0xFFFD : code_point);
    offset += length == 0 ? 1 : length;
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
  const auto points = to_code_points(caption);
  std::string out;
  out.reserve(caption.size());
  bool pending_space = false;
  for (size_t i = 0; i < points.size(); ++i) {
    if (is_space(points[i])) {
      pending_space = !out.empty();
      continue;
    }
    if (pending_space) out += ' ';
    pending_space = false;
    append_utf8(out, to_lower(points, i));
  }
  return out;
}

std::vector<std::string_view> split_pieces(std::string_view text) {
  std::vector<std::string_view> pieces;
  size_t run_start = 0;
  bool in_run = false;
  char32_t code_point = 0;
  for (size_t offset = 0; offset < text.size();) {
    const size_t length = std::max<size_t>(read_code_point(text, offset, code_point), 1);
    const bool joins = is_letter(code_point) || (in_run && is_mark(code_point));
    if (joins && !in_run) run_start = offset;
    if (!joins && in_run) pieces.push_back(text.substr(run_start, offset - run_start));
    if (!joins) pieces.push_back(text.substr(offset, length));
    in_run = joins;
    offset += length;
  }
  if (in_run) pieces.push_back(text.substr(run_start));
  return pieces;
}

std::vector<char32_t> to_code_points(std::string_view text) {
  std::vector<char32_t> points;
  points.reserve(text.size());
  char32_t code_point = 0;
  for (size_t offset = 0; offset < text.size();) {
    const size_t length = read_code_point(text, offset, code_point);
    points.push_back(length == 0 ? 0xFFFD : code_point);
    offset += length == 0 ? 1 : length;
  }
  return points;
}

std::string to_utf8(char32_t code_point) {
  std::string out;
  append_utf8(out, code_point);
  return out;
}

bool is_letter(char32_t code_point) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_mark(char32_t code_point) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

bool is_space(char32_t code_point) {
  if ((code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85) return true;
  if (code_point < 0xA0) return false;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
}

}  // namespace dalle::text

#include "dalle/text/clip_caption.h"

#include <c10/util/Exception.h>
#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/regex.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "html_entities.h"

namespace dalle::text {
namespace {

// The published pattern, without its names of special tokens: a caption can not spell them.
constexpr const char* kWordPattern = R"('s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+)";

const HtmlEntity* find_entity(std::string_view name) {
  const auto all = html_entities();
  const auto found = std::lower_bound(all.begin(), all.end(), name,
                                      [](const HtmlEntity& entity, std::string_view n) { return entity.name < n; });
  return found != all.end() && found->name == name ? &*found : nullptr;
}

/// What "&#N;" stands for in HTML 5: the C1 range is Windows-1252, other control characters and non-characters are dropped.
std::string text_of_number(uint64_t number) {
  static constexpr char32_t kWindows1252[] = {0x20AC, 0x81,   0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                              0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D,   0x017D, 0x8F,
                                              0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                              0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x9D,   0x017E, 0x0178};
  if (number == 0 || number > 0x10FFFF || (number >= 0xD800 && number <= 0xDFFF)) return to_utf8(0xFFFD);
  if (number >= 0x80 && number <= 0x9F) return to_utf8(kWindows1252[number - 0x80]);
  const bool is_control =
      (number < 0x20 && number != '\t' && number != '\n' && number != '\f' && number != '\r') || number == 0x7F;
  const bool is_noncharacter = (number >= 0xFDD0 && number <= 0xFDEF) || (number & 0xFFFE) == 0xFFFE;
  return is_control || is_noncharacter ? std::string() : to_utf8(static_cast<char32_t>(number));
}

/// Reads "#233;" or "#xE9" at the start of `text`; the number of bytes read, 0 where there is no number.
size_t read_numeric(std::string_view text, std::string& out) {
  const bool is_hex = text.size() > 1 && (text[1] == 'x' || text[1] == 'X');
  const char* begin = text.data() + (is_hex ? 2 : 1);
  uint64_t number = 0;
  const auto [stop, error] = std::from_chars(begin, text.data() + text.size(), number, is_hex ? 16 : 10);
  if (stop == begin) return 0;
  out += text_of_number(error == std::errc() ? number : UINT64_MAX);
  const auto length = static_cast<size_t>(stop - text.data());
  return length + (length < text.size() && text[length] == ';' ? 1 : 0);
}

/// Reads "eacute;" or, without its semicolon, the longest name that `text` starts with; 0 where there is none.
size_t read_named(std::string_view text, std::string& out) {
  constexpr size_t kMaxCharacters = 32;  // of a name
  size_t length = 0;
  for (size_t i = 0; i < kMaxCharacters && length < text.size(); ++i) {
    if (std::string_view("\t\n\f <&#;").find(text[length]) != std::string_view::npos) break;
    length += code_point_at(text, length).length;
  }
  if (length < text.size() && text[length] == ';') ++length;
  for (; length > 1; --length) {
    if (const HtmlEntity* entity = find_entity(text.substr(0, length))) {
      out += entity->text;
      return length;
    }
  }
  return 0;
}

/// As Python's str.split(): bidirectional classes B, S and WS, and space separators.
bool is_python_space(UChar32 c) {
  const auto direction = u_charDirection(c);
  return direction == U_WHITE_SPACE_NEUTRAL || direction == U_BLOCK_SEPARATOR || direction == U_SEGMENT_SEPARATOR ||
         u_charType(c) == U_SPACE_SEPARATOR;
}

icu::UnicodeString collapse_spaces(const icu::UnicodeString& text) {
  icu::UnicodeString out;
  bool pending = false;
  for (int32_t i = 0; i < text.length(); i = text.moveIndex32(i, 1)) {
    const UChar32 c = text.char32At(i);
    if (is_python_space(c)) {
      pending = !out.isEmpty();
      continue;
    }
    if (pending) out.append(static_cast<UChar32>(' '));
    pending = false;
    out.append(c);
  }
  return out;
}

icu::UnicodeString from_utf8(std::string_view text) {
  return icu::UnicodeString::fromUTF8({text.data(), static_cast<int32_t>(text.size())});
}

const icu::Normalizer2& normalizer(const icu::Normalizer2* (*get)(UErrorCode&)) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* found = get(status);
  TORCH_INTERNAL_ASSERT(U_SUCCESS(status), u_errorName(status));
  return *found;
}

icu::UnicodeString normalized(const icu::Normalizer2& form, const icu::UnicodeString& text) {
  UErrorCode status = U_ZERO_ERROR;
  auto out = form.normalize(text, status);
  TORCH_INTERNAL_ASSERT(U_SUCCESS(status), u_errorName(status));
  return out;
}

/// Characters that ftfy drops: controls but white space, and signs that direct what shows text.
bool is_dropped(UChar32 c) {
  return (c < 0x20 && c != '\t' && c != '\n' && c != '\f' && c != '\r') || c == 0x7F || (c >= 0x206A && c <= 0x206F) ||
         c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFC);
}

/// Full-width and half-width forms, and letters that are printed as one.
bool is_typographic_form(UChar32 c) {
  return (c >= 0xFF01 && c <= 0xFFEF) || c == 0x132 || c == 0x133 || (c >= 0x1C4 && c <= 0x1CC) ||
         (c >= 0x1F1 && c <= 0x1F3) || (c >= 0xFB00 && c <= 0xFB06 && c != 0xFB05);
}

/// ftfy's changes to text that was decoded rightly: straight quotes, plain forms of letters, no control characters, NFC.
icu::UnicodeString plain_typography(const icu::UnicodeString& text) {
  const auto& compatible = normalizer(&icu::Normalizer2::getNFKCInstance);
  icu::UnicodeString out;
  for (int32_t i = 0; i < text.length(); i = text.moveIndex32(i, 1)) {
    const UChar32 c = text.char32At(i);
    if (is_dropped(c)) continue;
    if (c == 0x2BC || (c >= 0x2018 && c <= 0x201B)) {
      out.append(static_cast<UChar32>('\''));
    } else if (c >= 0x201C && c <= 0x201F) {
      out.append(static_cast<UChar32>('"'));
    } else if (c == 0x149) {  // whose own apostrophe would be a curly one
      out.append(static_cast<UChar32>('\'')).append(static_cast<UChar32>('n'));
    } else if (is_typographic_form(c)) {
      out.append(normalized(compatible, icu::UnicodeString(c)));
    } else {
      out.append(c);
    }
  }
  return normalized(normalizer(&icu::Normalizer2::getNFCInstance), out);
}

std::string to_utf8_text(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

std::string unescape_twice(std::string_view text) { return unescape_html(unescape_html(text)); }

const icu::RegexPattern& word_pattern() {
  static const auto pattern = [] {
    UErrorCode status = U_ZERO_ERROR;
    UParseError place;
    std::unique_ptr<icu::RegexPattern> made(
        icu::RegexPattern::compile(kWordPattern, UREGEX_CASE_INSENSITIVE, place, status));
    TORCH_INTERNAL_ASSERT(U_SUCCESS(status), u_errorName(status));
    return made;
  }();
  return *pattern;
}

}  // namespace

std::string unescape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    if (text[offset] == '&' && offset + 1 < text.size()) {
      const auto rest = text.substr(offset + 1);
      if (const size_t length = rest[0] == '#' ? read_numeric(rest, out) : read_named(rest, out)) {
        offset += 1 + length;
        continue;
      }
    }
    out += text[offset++];
  }
  return out;
}

std::string clean_clip_caption(std::string_view caption) {
  if (const auto offset = find_invalid_utf8(caption)) {
    throw DataError(Problem{.place = str("caption, byte ", *offset),
                            .expected = "UTF-8 text",
                            .got = str("byte ", static_cast<int>(static_cast<unsigned char>(caption[*offset]))),
                            .hint = "convert the captions to UTF-8, for example with iconv"});
  }
  // ftfy, too, replaces references, but not in what looks like HTML.
  const bool looks_like_html = caption.find('<') != std::string_view::npos;
  const auto text = plain_typography(from_utf8(looks_like_html ? std::string(caption) : unescape_twice(caption)));
  auto spaced = collapse_spaces(from_utf8(unescape_twice(to_utf8_text(text))));
  return to_utf8_text(spaced.toLower(icu::Locale::getRoot()));
}

std::vector<std::string> split_clip_words(std::string_view cleaned) {
  const auto text = from_utf8(cleaned);
  UErrorCode status = U_ZERO_ERROR;
  const std::unique_ptr<icu::RegexMatcher> matcher(word_pattern().matcher(text, status));
  std::vector<std::string> words;
  while (U_SUCCESS(status) && matcher->find(status)) matcher->group(status).toUTF8String(words.emplace_back());
  TORCH_INTERNAL_ASSERT(U_SUCCESS(status), u_errorName(status));
  return words;
}

}  // namespace dalle::text

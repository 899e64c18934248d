// Captions before BPE: normalisation, and the split that decides what may merge (paper 2.2; author in openai/DALL-E
// #22: lower-case, only letter runs merge, digits, punctuation and white space never do). The paper's captions are
// English, so its runs are a-z; ours are letters of any script with their combining marks.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dalle::text {

/// Byte offset of the first byte that is not part of valid UTF-8 (overlong forms and surrogates are invalid).
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Each byte that is not part of valid UTF-8 becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

/// Lower-case (Unicode, with the final sigma), runs of white space as one space, no space at either end. Idempotent.
/// Throws DataError with the byte offset where the text is not UTF-8.
std::string normalize_caption(std::string_view caption);

/// What `text` begins with: a run of letters (with the combining marks that follow them), or one other character. Empty
/// for an empty text. Expects valid UTF-8.
std::string_view first_piece(std::string_view text);

/// The whole text in such views, one after the other.
std::vector<std::string_view> split_pieces(std::string_view text);

struct CodePoint {
  char32_t value = 0xFFFD;
  size_t length = 1;  // bytes
};

/// The code point at `offset` < size; U+FFFD of length 1 where the bytes are not valid UTF-8.
CodePoint code_point_at(std::string_view text, size_t offset);

/// Code points of valid UTF-8, and one code point as UTF-8.
std::vector<char32_t> to_code_points(std::string_view text);
std::string to_utf8(char32_t code_point);

/// True for Unicode letters (categories Lu, Ll, Lt, Lm, Lo).
bool is_letter(char32_t code_point);
/// True for combining marks (categories Mn, Mc, Me).
bool is_mark(char32_t code_point);
/// True for Unicode white space.
bool is_space(char32_t code_point);
/// True for valid UTF-8 of white space, control and format characters (Cc, Cf) alone.
bool is_blank(std::string_view text);
/// Code points of valid UTF-8.
size_t num_code_points(std::string_view text);

}  // namespace dalle::text

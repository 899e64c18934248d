// Drawing on pictures: sheets and grids are put together from these. A picture is u8 [H, W, 3], RGB, contiguous, on the
// CPU. Only the rasteriser of text is OpenCV's (picture_writer_opencv.cpp); without OpenCV its stub leaves text blank.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::generation {

using Colour = std::array<uint8_t, 3>;

/// What all sheets share.
inline constexpr Colour kPaper = {244, 245, 247};
inline constexpr Colour kHairline = {222, 225, 230};
inline constexpr Colour kInk = {32, 33, 36};
inline constexpr Colour kSoftInk = {95, 99, 104};
inline constexpr int64_t kSheetMargin = 28;  // px

struct TextStyle {
  int64_t size = 14;  // height of a capital letter plus its descender, px
  Colour colour = kInk;
  bool bold = false;
};

enum class TextAlign { kLeft, kCentre };

/// How small pictures are enlarged: pixels kept as squares, or a cubic spline. Reduction is always antialiased.
enum class Enlarge { kPixels, kSmooth };

/// u8 [H, W, 3] from a picture in either form the models use: u8 [H, W, 3], or floating point [3, H, W] in 0..1 (clamped,
/// rounded), on any device. Throws c10::ValueError for any other shape.
Tensor to_picture(const Tensor& picture);

Tensor blank_picture(int64_t height, int64_t width, Colour colour);

/// Fills a rectangle in place; parts outside the picture are cut off.
void fill_rectangle(Tensor& picture, int64_t top, int64_t left, int64_t height, int64_t width, Colour colour);

/// Copies `source` onto `target` in place; parts outside the target are cut off.
void paste(Tensor& target, const Tensor& source, int64_t top, int64_t left);

/// `picture` at [height, width].
Tensor resize_picture(const Tensor& picture, int64_t height, int64_t width, Enlarge enlarge);

/// The largest size of the picture's own aspect ratio that fits into a square of `side` px.
Tensor fit_picture(const Tensor& picture, int64_t side, Enlarge enlarge);

/// The ASCII that is drawn for UTF-8 text: accents of Latin letters dropped, typographic quotes and dashes made plain,
/// everything else '?'.
std::string plain_ascii(const std::string& text);

/// Width of one line of text in px.
int64_t text_width(const std::string& text, const TextStyle& style);

/// Distance between the tops of two lines, px.
constexpr int64_t line_height(const TextStyle& style) { return style.size * 5 / 4 + 1; }

/// The text broken at spaces into lines no wider than `width` px; what does not fit into `max_lines` ends in "...".
/// Words wider than a line are cut. Returns plain ASCII lines; none for an empty text.
std::vector<std::string> wrap_text(const std::string& text, const TextStyle& style, int64_t width, int64_t max_lines);

/// Draws one line with its top left corner at (left, top), antialiased, in place; what falls outside is cut off.
void draw_text(Tensor& picture, int64_t top, int64_t left, const std::string& text, const TextStyle& style);

/// Draws lines under each other within a column of `width` px. Returns the height used.
int64_t draw_lines(Tensor& picture, int64_t top, int64_t left, int64_t width, const std::vector<std::string>& lines,
                   const TextStyle& style, TextAlign align);

/// Encodes and writes atomically. `picture` in either form of to_picture. Throws FileError.
void write_png(const std::filesystem::path& path, const Tensor& picture);

/// The seam to OpenCV: coverage of one line of printable ASCII, u8 [line_height, coverage_width], 0 clear, 255 full.
Tensor text_coverage(const std::string& ascii, const TextStyle& style);
int64_t coverage_width(const std::string& ascii, const TextStyle& style);

}  // namespace dalle::generation

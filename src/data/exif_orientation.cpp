#include "dalle/data/exif_orientation.h"

#include <cstddef>
#include <cstdint>

namespace dalle::data {
namespace {

constexpr std::string_view kJpegStart = "\xFF\xD8";
constexpr std::string_view kPngStart = "\x89PNG\r\n\x1A\n";
constexpr std::string_view kExifStart{"Exif\0\0", 6};

/// An unsigned integer of `size` bytes; the caller has checked the range.
uint32_t read_uint(std::string_view bytes, size_t offset, size_t size, bool big_endian) {
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    const auto byte =
        static_cast<uint32_t>(static_cast<unsigned char>(bytes[offset + (big_endian ? i : size - 1 - i)]));
    value = value << 8 | byte;
  }
  return value;
}

/// Orientation from a TIFF structure: header, then the entries of the first directory.
int tiff_orientation(std::string_view tiff) {
  constexpr uint32_t kOrientationTag = 0x0112;
  if (tiff.size() < 8) return 1;
  const bool big_endian = tiff.substr(0, 2) == "MM";
  if (!big_endian && tiff.substr(0, 2) != "II") return 1;
  const size_t directory = read_uint(tiff, 4, 4, big_endian);
  if (directory > tiff.size() || tiff.size() - directory < 2) return 1;
  const size_t count = read_uint(tiff, directory, 2, big_endian);
  for (size_t i = 0; i < count; ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (entry + 12 > tiff.size()) return 1;
    if (read_uint(tiff, entry, 2, big_endian) != kOrientationTag) continue;
    const uint32_t value = read_uint(tiff, entry + 8, 2, big_endian);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

/// Calls `visit(marker, payload)` for each JPEG segment before the first scan; returns the offset of the scan's marker,
/// or npos where the file ends earlier.
template <class Visit>
size_t walk_jpeg_segments(std::string_view jpeg, Visit&& visit) {
  for (size_t offset = 2; offset + 4 <= jpeg.size();) {
    if (static_cast<unsigned char>(jpeg[offset]) != 0xFF) return std::string_view::npos;
    const auto marker = static_cast<unsigned char>(jpeg[offset + 1]);
    if (marker == 0xFF) {  // fill byte
      ++offset;
      continue;
    }
    if (marker == 0xDA) return offset;
    const size_t length = read_uint(jpeg, offset + 2, 2, true);
    if (length < 2 || offset + 2 + length > jpeg.size()) return std::string_view::npos;
    visit(marker, jpeg.substr(offset + 4, length - 2));
    offset += 2 + length;
  }
  return std::string_view::npos;
}

int jpeg_orientation(std::string_view jpeg) {
  int orientation = 1;
  walk_jpeg_segments(jpeg, [&](unsigned char marker, std::string_view payload) {
    if (marker == 0xE1 && payload.starts_with(kExifStart)) orientation = tiff_orientation(payload.substr(6));
  });
  return orientation;
}

/// PNG and WebP are lists of chunks with a four-letter name and a length.
int chunk_orientation(std::string_view file, size_t offset, bool is_png) {
  while (offset + 8 <= file.size()) {
    const size_t length = read_uint(file, is_png ? offset : offset + 4, 4, is_png);
    const auto name = file.substr(is_png ? offset + 4 : offset, 4);
    if (length > file.size() - offset - 8) return 1;
    if (name == (is_png ? "eXIf" : "EXIF")) {
      auto payload = file.substr(offset + 8, length);
      if (payload.starts_with(kExifStart)) payload.remove_prefix(6);
      return tiff_orientation(payload);
    }
    offset += 8 + length + (is_png ? 4 : length % 2);  // PNG: checksum; WebP: padded to even length
  }
  return 1;
}

}  // namespace

int exif_orientation(std::string_view picture) {
  if (picture.starts_with(kJpegStart)) return jpeg_orientation(picture);
  if (picture.starts_with(kPngStart)) return chunk_orientation(picture, kPngStart.size(), true);
  if (picture.size() >= 12 && picture.starts_with("RIFF") && picture.substr(8, 4) == "WEBP")
    return chunk_orientation(picture, 12, false);
  return 1;
}

bool is_jpeg_cut_short(std::string_view picture) {
  if (!picture.starts_with(kJpegStart)) return false;
  const size_t scan = walk_jpeg_segments(picture, [](unsigned char, std::string_view) {});
  // In a scan FF is always followed by 00 or a restart marker, so FF D9 is the end of the image.
  return scan == std::string_view::npos || picture.find("\xFF\xD9", scan) == std::string_view::npos;
}

}  // namespace dalle::data

// Picture files byte by byte, for kinds that our own encoder does not write.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dalle::testing {

inline std::string big_endian(uint32_t value, int size = 4) {
  std::string bytes;
  for (int shift = 8 * (size - 1); shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFF);
  return bytes;
}

inline std::string png_chunk(const std::string& type, const std::string& data) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : type + data) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return big_endian(static_cast<uint32_t>(data.size())) + type + data + big_endian(~crc);
}

/// A PNG of `width` x `height` with the colour type and bit depth of the PNG specification. `pixels`: the rows' bytes
/// without filter bytes. `extra`: whole chunks between header and data (PLTE, tRNS, eXIf).
inline std::string make_png(uint32_t width, uint32_t height, int color_type, int depth, const std::string& pixels,
                            const std::string& extra = "") {
  const size_t row_bytes = pixels.size() / height;
  std::string raw;
  for (uint32_t y = 0; y < height; ++y) raw += std::string(1, '\0') + pixels.substr(y * row_bytes, row_bytes);
  uint32_t a = 1;
  uint32_t b = 0;
  for (const char c : raw) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  const auto length = static_cast<uint16_t>(raw.size());  // one stored deflate block: up to 65,535 bytes
  const auto little = [](uint16_t v) { return std::string{static_cast<char>(v & 0xFF), static_cast<char>(v >> 8)}; };
  const std::string zlib = std::string("\x78\x01\x01", 3) + little(length) + little(static_cast<uint16_t>(~length)) +
                           raw + big_endian(b << 16 | a);
  const std::string header = big_endian(width) + big_endian(height) + static_cast<char>(depth) +
                             static_cast<char>(color_type) + std::string(3, '\0');
  return "\x89PNG\r\n\x1A\n" + png_chunk("IHDR", header) + extra + png_chunk("IDAT", zlib) + png_chunk("IEND", "");
}

/// A TIFF structure with the orientation tag alone.
inline std::string orientation_tiff(int orientation, bool is_big_endian) {
  const auto number = [&](uint32_t value, int size) {
    std::string bytes = big_endian(value, size);
    return is_big_endian ? bytes : std::string(bytes.rbegin(), bytes.rend());
  };
  return (is_big_endian ? "MM" : "II") + number(42, 2) + number(8, 4) + number(1, 2) + number(0x0112, 2) +
         number(3, 2) + number(1, 4) + number(static_cast<uint32_t>(orientation), 2) + number(0, 2) + number(0, 4);
}

/// The JPEG with an EXIF segment after its start marker.
inline std::string with_orientation(const std::string& jpeg, int orientation, bool is_big_endian = true) {
  const std::string payload = std::string("Exif\0\0", 6) + orientation_tiff(orientation, is_big_endian);
  return jpeg.substr(0, 2) + "\xFF\xE1" + big_endian(static_cast<uint32_t>(payload.size() + 2), 2) + payload +
         jpeg.substr(2);
}

}  // namespace dalle::testing

// EXIF orientation of a picture file, read without a picture library: OpenCV applies it only in the mode that drops
// alpha.
#pragma once

#include <string_view>

namespace dalle::data {

/// The orientation tag (1 to 8, TIFF 6.0 and EXIF 2.3) of a JPEG's APP1 segment, a PNG's eXIf chunk or a WebP's EXIF
/// chunk; 1 (upright) where there is none or it is damaged.
int exif_orientation(std::string_view picture);

/// True where a JPEG has no end-of-image marker after its first scan: the file was cut short. Decoders fill the missing
/// part with grey and call it a success.
bool is_jpeg_cut_short(std::string_view picture);

}  // namespace dalle::data

#include "dalle/generation/picture_writer.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dalle/core/files.h"
#include "dalle/data/image_codec.h"

namespace dalle::generation {
namespace {

// The part of [start, start + extent) that lies inside [0, limit).
struct PixelSpan {
  int64_t start, size;
};

PixelSpan clip_pixels(int64_t start, int64_t extent, int64_t limit) {
  const int64_t first = std::clamp<int64_t>(start, 0, limit);
  const int64_t last = std::clamp<int64_t>(start + extent, first, limit);
  return {first, last - first};
}

Tensor pixel_region(const Tensor& picture, PixelSpan rows, PixelSpan columns) {
  return picture.narrow(0, rows.start, rows.size).narrow(1, columns.start, columns.size);
}

Tensor colour_tensor(Colour colour) { return at::tensor({colour[0], colour[1], colour[2]}, at::kByte); }

}  // namespace

Tensor to_picture(const Tensor& picture) {
  const bool is_bytes = picture.scalar_type() == at::kByte;
  TORCH_CHECK_VALUE(picture.dim() == 3 && picture.size(is_bytes ? 2 : 0) == 3 && picture.numel() > 0 &&
                        (is_bytes || picture.is_floating_point()),
                    "expected a picture as u8 [H, W, 3] or floating point [3, H, W], got ", picture.scalar_type(), " ",
                    picture.sizes());
  if (is_bytes) return picture.detach().to(at::kCPU).contiguous();
  const Tensor scaled = picture.detach().to(at::kCPU, at::kFloat).nan_to_num().clamp(0, 1).mul(255).round();
  return scaled.permute({1, 2, 0}).to(at::kByte).contiguous();
}

Tensor blank_picture(int64_t height, int64_t width, Colour colour) {
  return colour_tensor(colour).expand({height, width, 3}).contiguous();
}

void fill_rectangle(Tensor& picture, int64_t top, int64_t left, int64_t height, int64_t width, Colour colour) {
  const PixelSpan rows = clip_pixels(top, height, picture.size(0));
  const PixelSpan columns = clip_pixels(left, width, picture.size(1));
  pixel_region(picture, rows, columns).copy_(colour_tensor(colour));
}

void paste(Tensor& target, const Tensor& source, int64_t top, int64_t left) {
  const PixelSpan rows = clip_pixels(top, source.size(0), target.size(0));
  const PixelSpan columns = clip_pixels(left, source.size(1), target.size(1));
  const PixelSpan source_rows{rows.start - top, rows.size};
  const PixelSpan source_columns{columns.start - left, columns.size};
  if (rows.size == 0 || columns.size == 0) return;
  pixel_region(target, rows, columns).copy_(pixel_region(source, source_rows, source_columns));
}

Tensor resize_picture(const Tensor& picture, int64_t height, int64_t width, Enlarge enlarge) {
  if (picture.size(0) == height && picture.size(1) == width) return picture;
  const Tensor planes = picture.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat).contiguous();
  const bool enlarges = height >= picture.size(0) && width >= picture.size(1);
  const Tensor resized = enlarges && enlarge == Enlarge::kPixels
                             ? at::upsample_nearest2d(planes, {height, width})
                             : at::_upsample_bicubic2d_aa(planes, {height, width}, /*align_corners=*/false);
  return resized[0].clamp(0, 255).round().permute({1, 2, 0}).to(at::kByte).contiguous();
}

Tensor fit_picture(const Tensor& picture, int64_t side, Enlarge enlarge) {
  const int64_t longer = std::max(picture.size(0), picture.size(1));
  const auto scaled = [&](int64_t extent) { return std::max<int64_t>(1, (extent * side + longer / 2) / longer); };
  return resize_picture(picture, scaled(picture.size(0)), scaled(picture.size(1)), enlarge);
}

int64_t text_width(const std::string& text, const TextStyle& style) { return coverage_width(plain_ascii(text), style); }

void draw_text(Tensor& picture, int64_t top, int64_t left, const std::string& text, const TextStyle& style) {
  const Tensor coverage = text_coverage(plain_ascii(text), style);
  const PixelSpan rows = clip_pixels(top, coverage.size(0), picture.size(0));
  const PixelSpan columns = clip_pixels(left, coverage.size(1), picture.size(1));
  if (rows.size == 0 || columns.size == 0) return;
  const Tensor alpha = pixel_region(coverage, {rows.start - top, rows.size}, {columns.start - left, columns.size});
  Tensor under = pixel_region(picture, rows, columns);
  const Tensor ink = colour_tensor(style.colour).to(at::kFloat).expand_as(under);
  under.copy_(
      at::lerp(under.to(at::kFloat), ink, alpha.to(at::kFloat).div(255).unsqueeze(-1).expand_as(under)).round());
}

int64_t draw_lines(Tensor& picture, int64_t top, int64_t left, int64_t width, const std::vector<std::string>& lines,
                   const TextStyle& style, TextAlign align) {
  int64_t used = 0;
  for (const std::string& line : lines) {
    const int64_t slack = align == TextAlign::kCentre ? std::max<int64_t>(0, (width - text_width(line, style)) / 2) : 0;
    draw_text(picture, top + used, left + slack, line, style);
    used += line_height(style);
  }
  return used;
}

void write_png(const std::filesystem::path& path, const Tensor& picture) {
  write_file(path, data::encode_png(to_picture(picture)));
}

}  // namespace dalle::generation

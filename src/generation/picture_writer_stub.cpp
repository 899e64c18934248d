// Without OpenCV there is no font: text takes its room and stays blank.
#include <ATen/ATen.h>

#include "dalle/generation/picture_writer.h"

namespace dalle::generation {

int64_t coverage_width(const std::string& ascii, const TextStyle& style) {
  return static_cast<int64_t>(ascii.size()) * style.size * 6 / 10;
}

Tensor text_coverage(const std::string& ascii, const TextStyle& style) {
  return at::zeros({line_height(style), coverage_width(ascii, style)}, at::kByte);
}

}  // namespace dalle::generation

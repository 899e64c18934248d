// Takes the place of image_codec_opencv.cpp in builds without OpenCV.
#include "dalle/core/error.h"
#include "dalle/data/image_codec.h"

namespace dalle::data {
namespace {

[[noreturn]] void refuse() {
  throw ConfigError(Problem{.place = "picture",
                            .expected = "a build that reads and writes pictures",
                            .got = "one without OpenCV",
                            .hint = "configure with -DDALLE_WITH_OPENCV=ON"});
}

}  // namespace

Tensor decode_picture(std::string_view, const Background&) { refuse(); }

std::string encode_png(const Tensor&) { refuse(); }

std::string encode_jpeg(const Tensor&, int) { refuse(); }

}  // namespace dalle::data

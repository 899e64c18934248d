#include "dalle/generation/clip_scoring.h"

#include <ATen/ATen.h>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/data/transforms.h"
#include "dalle/generation/caption_list.h"
#include "dalle/generation/picture_writer.h"

namespace dalle::generation {
namespace {

constexpr size_t kChunk = 32;  // captions or pictures

/// Calls `encode` with the rows of a chunk as one tensor [n, ...] and returns all it gave.
template <class Row, class Encode>
Tensor encode_chunks(size_t count, Row row, Encode encode) {
  std::vector<Tensor> features;
  for (size_t first = 0; first < count; first += kChunk) {
    std::vector<Tensor> rows;
    for (size_t i = first; i < std::min(count, first + kChunk); ++i) rows.push_back(row(i));
    features.push_back(encode(at::stack(rows)).to(at::kCPU));
  }
  return at::cat(features);
}

}  // namespace

Tensor caption_features(const models::Clip& clip, const text::TextTokenizer& tokenizer,
                        const std::vector<std::string>& captions) {
  return encode_chunks(
      captions.size(),
      [&](size_t i) {
        const auto pieces = tokenizer.encode(captions[i]);
        const int64_t room = clip.config().text_context - 2;  // besides the start and the end token
        if (std::ssize(pieces) > room) {
          log_warning(str("a caption is longer than the ", room,
                          " tokens that CLIP reads and was cut: ", shortened(captions[i])));
        }
        return at::tensor(models::clip_text_ids(clip.config(), pieces), at::kLong);
      },
      [&](const Tensor& ids) { return clip.encode_text(to_device(ids, clip.device())); });
}

Tensor picture_features(const models::Clip& clip, const std::vector<Tensor>& pictures) {
  return picture_features(clip, pictures.size(), [&](size_t i) { return pictures[i]; });
}

Tensor picture_features(const models::Clip& clip, size_t count, const std::function<Tensor(size_t)>& picture,
                        const std::function<std::string(size_t)>& name) {
  const auto prepared = [&](size_t i) {
    const Tensor pixels = to_picture(picture(i));
    try {
      return data::clip_picture(pixels, clip.config().image_size);
    } catch (const DataError& error) {
      throw name ? DataError(str(name(i), ": ", error.what())) : error;
    }
  };
  return encode_chunks(count, prepared, [&](const Tensor& bytes) {
    return clip.encode_image(to_device(bytes, clip.device()).to(at::kFloat).div_(255));
  });
}

}  // namespace dalle::generation

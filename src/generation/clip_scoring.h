// Private to the commands that score pictures by CLIP: features of captions and of pictures, each through the checkpoint's own
// tokenizer and preprocessing.
#pragma once

#include <string>
#include <vector>

#include "dalle/models/load.h"

namespace dalle::generation {

/// Unit features [N, E] on the CPU.
Tensor caption_features(const models::Clip& clip, const text::TextTokenizer& tokenizer,
                        const std::vector<std::string>& captions);

/// Unit features [N, E] on the CPU of pictures in any form that to_picture() takes, of any size (data::clip_picture). Worked
/// on in chunks, so memory does not grow with their number.
Tensor picture_features(const models::Clip& clip, const std::vector<Tensor>& pictures);

}  // namespace dalle::generation

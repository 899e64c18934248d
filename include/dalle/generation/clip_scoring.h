// What the commands that score pictures by CLIP share: features of captions and of pictures, each through the checkpoint's own
// tokenizer and preprocessing.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dalle/models/load.h"

namespace dalle::generation {

/// Unit features [N, E] on the CPU. A caption beyond the model's context is cut, its end token kept, with a warning.
Tensor caption_features(const models::Clip& clip, const text::TextTokenizer& tokenizer,
                        const std::vector<std::string>& captions);

/// Unit features [N, E] on the CPU of pictures in any form that to_picture() takes, of any size (data::clip_picture). Worked
/// on in chunks, so memory does not grow with their number.
Tensor picture_features(const models::Clip& clip, const std::vector<Tensor>& pictures);

/// The same for `count` > 0 pictures that `picture(i)` gives, one after the other: one of them is held at its own size.
Tensor picture_features(const models::Clip& clip, size_t count, const std::function<Tensor(size_t)>& picture,
                        const std::function<std::string(size_t)>& name = {});

}  // namespace dalle::generation

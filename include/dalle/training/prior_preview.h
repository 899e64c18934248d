// Pictures of a prior in training: samples for fixed captions, and the tokens it is trained on.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dalle/models/dvae.h"
#include "dalle/models/prior.h"
#include "dalle/training/task.h"

namespace dalle::training {

/// A caption to sample, with the picture it belongs to where there is one.
struct PreviewCaption {
  std::string caption;
  Tensor picture;  // [3, S, S] in 0..1, or undefined
  Tensor codes_I;  // its image tokens, or undefined
};

struct PreviewOptions {
  std::string name;   // file stem below samples/
  std::string title;  // "samples for training captions at step 100"
  uint64_t seed = 0;  // of the noise, the same at every step: pictures change as the model does
};

/// A row for each caption: its picture, what the dVAE makes of it, and four samples at temperature 1.
Sheet sample_sheet(const models::Prior& prior, const models::Dvae& dvae, const std::vector<PreviewCaption>& captions,
                   const std::function<Tensor(const std::string&)>& ids_of, const PreviewOptions& options);

/// codes int64 [B, grid_size^2] as pictures, [B, 3, grid_size, grid_size] in 0..1: a fixed colour for each code, for runs
/// without a dVAE to decode them.
Tensor code_colours(const Tensor& codes_BI, int64_t grid_size);

}  // namespace dalle::training

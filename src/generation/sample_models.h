// Private to the sampling command: the models of one run, loaded and checked against each other.
#pragma once

#include <memory>
#include <optional>

#include "dalle/generation/sample_job.h"
#include "dalle/generation/scores_json.h"
#include "dalle/generation/token_sampler.h"
#include "dalle/models/load.h"
#include "dalle/text/caption_encoder.h"

namespace dalle::generation {

struct SampleModels {
  at::Device device = at::kCPU;
  models::Loaded<models::Prior> prior;
  std::unique_ptr<TokenSampler> sampler;  // of the prior
  models::Loaded<models::Dvae> dvae;
  std::optional<models::Loaded<models::Clip>> clip;
  std::unique_ptr<text::CaptionEncoder> captions;
  std::optional<text::TextTokenizer> clip_tokenizer;
  std::vector<ModelUsed> used;
};

/// On `device`. Throws ConfigError where the dVAE is not the one that the prior was trained with.
SampleModels load_sample_models(const SampleOptions& options, at::Device device);

/// The dVAE decodes so many pictures at a time.
inline constexpr int64_t kDecodeTogether = 32;

/// Candidates that fit into half of the free memory together: the sampler's caches and finished pictures, beside the dVAE's
/// decoder, for each of the ranks that share this machine. On a GPU as many as gain speed. At most `candidates`.
int64_t plan_batch_size(const SampleModels& models, const SampleOptions& options, int ranks_here, int64_t candidates);

}  // namespace dalle::generation

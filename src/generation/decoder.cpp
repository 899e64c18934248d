#include "dalle/generation/decoder.h"

#include <ATen/ATen.h>

#include "dalle/core/error.h"
#include "dalle/generation/fused_model.h"
#include "dalle/generation/prior_decoder.h"
#include "dalle/generation/static_decoder.h"

namespace dalle::generation {

std::unique_ptr<DecodingModel> make_decoding_model(const models::Prior& prior, const DecodeOptions& options) {
  if (!options.by_operators && FusedModel::fits(prior))
    return std::make_unique<FusedModel>(prior, options.int8_weights);
  if (options.int8_weights) {
    throw ConfigError(Problem{"int8 weights", "a prior on the CPU",
                              options.by_operators ? "decoding by operators" : prior.device().str(),
                              "use --device cpu, or bf16"});
  }
  if (prior.device().is_cuda() && !options.by_operators) return std::make_unique<StaticModel>(prior);
  return std::make_unique<OperatorModel>(prior);
}

}  // namespace dalle::generation

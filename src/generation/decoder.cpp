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
  const bool is_f64 = prior.compute().dtype == at::kDouble;
  if (prior.device().is_cuda() && !options.by_operators && !(is_f64 && options.int8_weights)) {
    return std::make_unique<StaticModel>(prior, options.int8_weights);
  }
  if (options.int8_weights) {
    throw ConfigError(Problem{"int8 weights", "a prior in f32 or bf16",
                              options.by_operators ? "decoding by operators"
                              : is_f64             ? "f64"
                                                   : "other types",
                              "use --precision bf16"});
  }
  return std::make_unique<OperatorModel>(prior);
}

}  // namespace dalle::generation

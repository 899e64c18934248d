#include "dalle/models/dvae.h"

#include <ATen/ATen.h>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/layers/relaxation.h"

namespace dalle::models {
namespace {

layers::DvaeBlockOptions block_options(const DvaeConfig& config, const DvaeCompute& compute) {
  return {.num_groups = config.num_groups,
          .num_blocks_per_group = config.num_blocks_per_group,
          .hidden_dim = config.hidden_dim,
          .decoder_init_dim = config.decoder_init_dim,
          .vocab_size = config.vocab_size,
          .vector_quantized = config.quantizer == Quantizer::kVq,
          .compute_dtype = compute.dtype,
          .relaxation_dtype = compute.relaxation_dtype};
}

const DvaeConfig& validated(const DvaeConfig& config) {
  config.validate("dvae");
  return config;
}

}  // namespace

void DvaeConfig::validate(const std::string& place) const {
  if (image_size % downsampling() != 0) {
    throw ConfigError(Problem{place, str("image_size divisible by ", downsampling(), " (2^(num_groups - 1))"),
                              str(image_size), "change image_size or num_groups"});
  }
  if (hidden_dim % 4 != 0) {
    throw ConfigError(Problem{place, "hidden_dim divisible by 4 (the bottleneck)", str(hidden_dim), ""});
  }
}

Dvae::Dvae(const DvaeConfig& config, const DvaeCompute& compute)
    : config_(validated(config)),
      encoder(*this, "encoder", block_options(config, compute)),
      decoder(*this, "decoder", block_options(config, compute)) {
  if (config.quantizer == Quantizer::kVq) {
    quantizer =
        std::make_unique<layers::VectorQuantizer>(*this, "quantizer", config.vocab_size, config.decoder_init_dim);
  }
}

Tensor Dvae::encode_logits(const Tensor& pixels_B3HW, layers::BlockRunner& runner) const {
  const Tensor out = encoder.forward(layers::map_pixels(pixels_B3HW), runner);
  return quantizer == nullptr ? out : out.to(at::promote_types(out.scalar_type(), at::kFloat));
}

Tensor Dvae::codes_of(const Tensor& logits) const {
  return quantizer == nullptr ? layers::argmax_codes(logits) : quantizer->nearest(logits);
}

Tensor Dvae::encode(const Tensor& pixels_B3HW) const { return codes_of(encode_logits(pixels_B3HW)); }

Tensor Dvae::decoder_input(const Tensor& codes_BHW) const {
  return quantizer == nullptr ? layers::one_hot_codes(codes_BHW, config_.vocab_size) : quantizer->lookup(codes_BHW);
}

Tensor Dvae::decode_stats(const Tensor& z_BVHW, layers::BlockRunner& runner) const {
  return decoder.forward(z_BVHW, runner);
}

Tensor Dvae::picture_of(const Tensor& stats_B6HW) const {
  return layers::reconstruction_from_stats(stats_B6HW, config_.likelihood);
}

Tensor Dvae::decode(const Tensor& codes_BHW) const { return picture_of(decode_stats(decoder_input(codes_BHW))); }

}  // namespace dalle::models

// Stage 1: the discrete VAE. 97,616,006 parameters at paper size. Beside the paper's Gumbel relaxation there is the codebook
// of VQ-VAE (quantizer: vq) to compare it with: the same encoder and decoder around a deterministic code.
#pragma once

#include <memory>
#include <string>

#include "dalle/layers/dvae_blocks.h"
#include "dalle/layers/likelihood.h"
#include "dalle/layers/vector_quantizer.h"

namespace dalle::models {

enum class Quantizer { kGumbel, kVq };

struct DvaeConfig {
  int64_t image_size = 256;
  int64_t vocab_size = 8192;
  int64_t hidden_dim = 256;
  int64_t num_groups = 4;
  int64_t num_blocks_per_group = 2;
  int64_t decoder_init_dim = 128;
  Quantizer quantizer = Quantizer::kGumbel;
  layers::Likelihood likelihood = layers::Likelihood::kLogitLaplace;

  int64_t downsampling() const { return int64_t{1} << (num_groups - 1); }
  int64_t grid_size() const { return image_size / downsampling(); }

  static void visit_fields(auto& self, auto&& field) {
    field("image_size", self.image_size, "side of the square pictures", {.min = 8, .unit = "pixels"});
    field("vocab_size", self.vocab_size, "number of image tokens (codes)", {.min = 2});
    field("hidden_dim", self.hidden_dim, "channels of the first group; doubled by each further group", {.min = 4});
    field("num_groups", self.num_groups, "groups of resblocks; the picture shrinks by 2^(num_groups - 1)",
          {.min = 1, .max = 8});
    field("num_blocks_per_group", self.num_blocks_per_group, "resblocks in each group", {.min = 1});
    field("decoder_init_dim", self.decoder_init_dim, "channels of a codebook vector (the decoder's first layer)",
          {.min = 1});
    field("quantizer", self.quantizer,
          "gumbel: the encoder gives logits over the codes, relaxed in training (paper); vq: it gives vectors, "
          "replaced by "
          "the nearest of a codebook that follows them");
    field("likelihood", self.likelihood,
          "density of a sub-pixel: logit_laplace (paper), laplace (l1) or gaussian (l2), each with its own scale");
  }
  void validate(const std::string& place) const;
};

/// How a model computes, apart from what it is.
struct DvaeCompute {
  at::ScalarType dtype = at::kFloat;             // inside the encoder and decoder
  at::ScalarType relaxation_dtype = at::kFloat;  // the two convolutions around the relaxation
};

class Dvae : public layers::Module {
 public:
  /// On the meta device; call materialize() and initialize() or load weights.
  explicit Dvae(const DvaeConfig& config, const DvaeCompute& compute = {});

  /// Pixels [B, 3, S, S] in [0, 1] -> logits [B, V, G, G] in relaxation_dtype; with a codebook, the vectors
  /// [B, D, G, G] to be quantised, in f32.
  Tensor encode_logits(const Tensor& pixels_B3HW, layers::BlockRunner& runner = layers::plain_runner()) const;
  /// The codes [B, G, G] that encode_logits stands for: argmax, or the nearest codebook vector.
  Tensor codes_of(const Tensor& logits) const;
  /// codes_of(encode_logits(pixels)).
  Tensor encode(const Tensor& pixels_B3HW) const;
  /// Codes [B, G, G] as decode_stats takes them: one-hot [B, V, G, G], or codebook vectors [B, D, G, G].
  Tensor decoder_input(const Tensor& codes_BHW) const;
  /// Relaxed or one-hot codes [B, V, G, G], or codebook vectors -> statistics [B, 6, S, S] (mu, ln b), f32.
  Tensor decode_stats(const Tensor& z_BVHW, layers::BlockRunner& runner = layers::plain_runner()) const;
  /// The picture [B, 3, S, S] in [0, 1] that statistics show.
  Tensor picture_of(const Tensor& stats_B6HW) const;
  /// Codes [B, G, G] -> pixels [B, 3, S, S] in [0, 1].
  Tensor decode(const Tensor& codes_BHW) const;

  const DvaeConfig& config() const { return config_; }

 private:
  DvaeConfig config_;

 public:
  layers::DvaeEncoder encoder;
  layers::DvaeDecoder decoder;
  std::unique_ptr<layers::VectorQuantizer> quantizer;  // null for gumbel
};

}  // namespace dalle::models

namespace dalle {
template <>
struct EnumNames<models::Quantizer> {
  static constexpr EnumName<models::Quantizer> values[] = {{models::Quantizer::kGumbel, "gumbel"},
                                                           {models::Quantizer::kVq, "vq"}};
};
}  // namespace dalle

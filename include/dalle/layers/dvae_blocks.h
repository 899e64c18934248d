// The dVAE's encoder and decoder in the released architecture (openai/DALL-E dall_e/encoder.py, decoder.py): convolutional
// bottleneck resblocks, max-pooling down, nearest neighbour up, no normalisation. Names below "encoder." and "decoder."
// are those of the released state dicts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dalle/layers/block_runner.h"
#include "dalle/layers/leaf.h"

namespace dalle::layers {

struct DvaeBlockOptions {
  int64_t num_groups = 4;  // downsampling factor 2^(num_groups - 1)
  int64_t num_blocks_per_group = 2;
  int64_t hidden_dim = 256;        // n_hid; group g of the encoder is hidden_dim * 2^g wide
  int64_t decoder_init_dim = 128;  // n_init: width of a codebook vector
  int64_t vocab_size = 8192;
  /// The encoder then ends in vectors of decoder_init_dim channels and the decoder starts from such vectors: what turns
  /// one into the other is a codebook outside (layers/vector_quantizer.h), in place of the decoder's `input`.
  bool vector_quantized = false;
  /// Of the blocks' convolutions. The decoder's stream of residuals and its last convolution are f32 at least.
  at::ScalarType compute_dtype = at::kFloat;
  at::ScalarType relaxation_dtype = at::kFloat;  // the two convolutions around the relaxation
  int64_t num_layers() const { return num_groups * num_blocks_per_group; }
  /// Channels between the encoder and the decoder.
  int64_t code_dim() const { return vector_quantized ? decoder_init_dim : vocab_size; }
};

/// id_path(x) + post_gain * res_path(x), post_gain = 1 / num_layers^2. The encoder ends its res_path with the 1x1
/// convolution, the decoder begins with it.
struct DvaeBlock : Module {
  enum class Side { kEncoder, kDecoder };
  DvaeBlock(Module& parent, std::string name, Side side, int64_t in, int64_t out, int64_t num_layers);
  /// [B, in, H, W] -> [B, out, H, W] in x's type; with `enlarges` [B, out, 2 H, 2 W], as if x had been enlarged before.
  Tensor forward(const Tensor& x, at::ScalarType compute_dtype, bool enlarges = false) const;
  std::unique_ptr<Conv2d> id_path;  // null where the width does not change
  Module res_path;
  Conv2d conv_1, conv_2, conv_3, conv_4;
  double post_gain;
};

/// The scopes group_1 ... group_G with their resblocks block_1 ... block_N.
class DvaeGroups {
 public:
  DvaeGroups(Module& blocks, DvaeBlock::Side side, const DvaeBlockOptions& options);
  const DvaeBlock& block(int64_t index) const { return *resblocks_[static_cast<size_t>(index)]; }

 private:
  std::vector<std::unique_ptr<Module>> groups_;
  std::vector<std::unique_ptr<DvaeBlock>> resblocks_;
};

struct DvaeEncoder : Module {
  DvaeEncoder(Module& parent, std::string name, const DvaeBlockOptions& options);
  /// [B, 3, S, S] mapped pixels -> logits [B, code_dim, S / f, S / f] in f32. Throws c10::ValueError on other shapes.
  Tensor forward(const Tensor& x_B3HW, BlockRunner& runner) const;
  DvaeBlockOptions options;
  Module blocks;
  Conv2d input;
  DvaeGroups groups;
  Module output_scope;
  Conv2d output;
};

struct DvaeDecoder : Module {
  DvaeDecoder(Module& parent, std::string name, const DvaeBlockOptions& options);
  /// One-hot or relaxed codes (or code vectors) [B, code_dim, G, G] -> [B, 6, G f, G f] f32: three maps mu, three ln b.
  Tensor forward(const Tensor& z_BVHW, BlockRunner& runner) const;
  DvaeBlockOptions options;
  Module blocks;
  std::unique_ptr<Conv2d> input;  // null where vector_quantized
  DvaeGroups groups;
  Module output_scope;
  Conv2d output;
};

}  // namespace dalle::layers

#include "dalle/layers/dvae_blocks.h"

#include <ATen/ATen.h>

#include "dalle/layers/elementwise.h"
#include "dalle/layers/resblock.h"

namespace dalle::layers {
namespace {

using Side = DvaeBlock::Side;

int64_t kernel_of(Side side, int64_t conv) {
  const int64_t pointwise = side == Side::kEncoder ? 4 : 1;
  return conv == pointwise ? 1 : 3;
}

std::string numbered(const char* name, int64_t index) { return name + std::to_string(index); }

Tensor channels_last(const Tensor& x, at::ScalarType type) {
  return x.to(x.options().dtype(type), /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::ChannelsLast);
}

std::unique_ptr<Conv2d> codebook_conv(Module& blocks, const DvaeBlockOptions& options) {
  if (options.vector_quantized) return nullptr;
  return std::make_unique<Conv2d>(blocks, "input",
                                  Conv2dOptions{.in = options.vocab_size, .out = options.decoder_init_dim});
}

}  // namespace

DvaeBlock::DvaeBlock(Module& parent, std::string name, Side side, int64_t in, int64_t out, int64_t num_layers)
    : Module(parent, std::move(name)),
      id_path(in == out ? nullptr : std::make_unique<Conv2d>(*this, "id_path", Conv2dOptions{.in = in, .out = out})),
      res_path(*this, "res_path"),
      conv_1(res_path, "conv_1", {.in = in, .out = out / 4, .kernel = kernel_of(side, 1)}),
      conv_2(res_path, "conv_2", {.in = out / 4, .out = out / 4, .kernel = kernel_of(side, 2)}),
      conv_3(res_path, "conv_3", {.in = out / 4, .out = out / 4, .kernel = kernel_of(side, 3)}),
      conv_4(res_path, "conv_4", {.in = out / 4, .out = out, .kernel = kernel_of(side, 4)}),
      post_gain(1.0 / static_cast<double>(num_layers * num_layers)) {}

Tensor DvaeBlock::forward(const Tensor& x, at::ScalarType compute_dtype, bool enlarges) const {
  return resblock(x, id_path == nullptr ? ConvWeights{} : id_path->weights(),
                  {conv_1.weights(), conv_2.weights(), conv_3.weights(), conv_4.weights()},
                  {.gain = post_gain, .compute_dtype = compute_dtype, .enlarges = enlarges});
}

DvaeGroups::DvaeGroups(Module& blocks, Side side, const DvaeBlockOptions& options) {
  const int64_t widest = options.num_groups - 1;
  int64_t in = side == Side::kEncoder ? options.hidden_dim : options.decoder_init_dim;
  for (int64_t group = 0; group < options.num_groups; ++group) {
    const int64_t out = options.hidden_dim << (side == Side::kEncoder ? group : widest - group);
    groups_.push_back(std::make_unique<Module>(blocks, numbered("group_", group + 1)));
    for (int64_t block = 0; block < options.num_blocks_per_group; ++block) {
      resblocks_.push_back(std::make_unique<DvaeBlock>(*groups_.back(), numbered("block_", block + 1), side, in, out,
                                                       options.num_layers()));
      in = out;
    }
  }
}

DvaeEncoder::DvaeEncoder(Module& parent, std::string name, const DvaeBlockOptions& options)
    : Module(parent, std::move(name)),
      options(options),
      blocks(*this, "blocks"),
      input(blocks, "input", {.in = 3, .out = options.hidden_dim, .kernel = 7}),
      groups(blocks, Side::kEncoder, options),
      output_scope(blocks, "output"),
      output(output_scope, "conv", {.in = options.hidden_dim << (options.num_groups - 1), .out = options.code_dim()}) {}

Tensor DvaeEncoder::forward(const Tensor& x_B3HW, BlockRunner& runner) const {
  const int64_t factor = int64_t{1} << (options.num_groups - 1);
  TORCH_CHECK_VALUE(
      x_B3HW.dim() == 4 && x_B3HW.size(1) == 3 && x_B3HW.size(2) % factor == 0 && x_B3HW.size(3) % factor == 0,
      "[dvae encoder] expected pixels [B, 3, H, W] with H and W multiples of ", factor, ", got ", x_B3HW.sizes());
  Tensor x = input.forward(channels_last(x_B3HW, options.compute_dtype));
  for (int64_t index = 0; index < options.num_layers(); ++index) {
    const DvaeBlock& block = groups.block(index);
    x = runner.run(index, x, [this, &block](const Tensor& in) { return block.forward(in, options.compute_dtype); });
    const bool group_ends = (index + 1) % options.num_blocks_per_group == 0;
    if (group_ends && index + 1 < options.num_layers()) x = at::max_pool2d(x, 2);
  }
  return output.forward(at::relu(x).to(options.relaxation_dtype));
}

DvaeDecoder::DvaeDecoder(Module& parent, std::string name, const DvaeBlockOptions& options)
    : Module(parent, std::move(name)),
      options(options),
      blocks(*this, "blocks"),
      input(codebook_conv(blocks, options)),
      groups(blocks, Side::kDecoder, options),
      output_scope(blocks, "output"),
      output(output_scope, "conv", {.in = options.hidden_dim, .out = 6}) {}

Tensor DvaeDecoder::forward(const Tensor& z_BVHW, BlockRunner& runner) const {
  TORCH_CHECK_VALUE(z_BVHW.dim() == 4 && z_BVHW.size(1) == options.code_dim(), "[dvae decoder] expected codes [B, ",
                    options.code_dim(), ", H, W], got ", z_BVHW.sizes());
  Tensor x = channels_last(z_BVHW, options.relaxation_dtype);
  // The stream of residuals is f32: rounded to bf16 at every block it would blur the picture by more than the scales b that
  // the likelihood learns, and cost .05 nats (docs/performance.md).
  const auto stream = at::promote_types(options.compute_dtype, at::kFloat);
  x = input == nullptr ? x.to(stream) : pointwise(x, input->weights(), stream);
  for (int64_t index = 0; index < options.num_layers(); ++index) {
    const DvaeBlock& block = groups.block(index);
    const bool enlarges = index > 0 && index % options.num_blocks_per_group == 0;
    x = runner.run(options.num_layers() + index, x, [this, &block, enlarges](const Tensor& in) {
      return block.forward(in, options.compute_dtype, enlarges);
    });
  }
  return output.forward(x.is_view() ? at::relu(x) : at::relu_(x));  // a runner may give a view
}

}  // namespace dalle::layers

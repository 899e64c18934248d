#include "dalle/models/summary.h"

#include <c10/core/ScalarType.h>

#include <algorithm>

#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/layers/fused_cross_entropy.h"

namespace dalle::models {
namespace {

Summary count(const layers::Module& model) {
  Summary summary;
  const auto parameters = model.named_parameters();
  summary.num_tensors = static_cast<int64_t>(parameters.size());
  summary.num_parameters = model.num_parameters();
  return summary;
}

// 2 x weights x positions for every convolution below `prefix`; the grid shrinks or grows by 2 from group to group.
double dvae_flops(const layers::Module& model, const DvaeConfig& config) {
  double flops = 0;
  for (const auto& [name, parameter] : model.named_parameters()) {
    if (name == "quantizer.codebook") {  // distances of every position to every code
      flops += 2.0 * static_cast<double>(parameter->tensor.numel() * config.grid_size() * config.grid_size());
    }
    if (parameter->tensor.dim() != 4) continue;
    const bool encoder = name.starts_with("encoder.");
    int64_t side = config.image_size;
    const size_t group = name.find("group_");
    if (group != std::string::npos) {
      const int64_t index = std::stoll(name.substr(group + 6)) - 1;
      side >>= encoder ? index : config.num_groups - 1 - index;
    } else if (encoder == (name.find("output") != std::string::npos)) {
      side = config.grid_size();  // the encoder's output and the decoder's input
    }
    flops += 2.0 * static_cast<double>(parameter->tensor.numel()) * static_cast<double>(side * side);
  }
  return flops;
}

// Pairs of image slots an attention kind allows, plus text.
double attention_pairs(const PriorConfig& config, layers::AttentionKind kind) {
  const int64_t text = config.text_context;
  double pairs = 0.5 * static_cast<double>(text) * static_cast<double>(text + 1);
  for (int64_t slot = 0; slot < config.image_context(); ++slot) {
    pairs += static_cast<double>(text);
    pairs += static_cast<double>(
        layers::visible_image_slots(kind, config.grid_size, {config.conv_kernel, config.conv_mask_edge}, slot).size());
  }
  return pairs;
}

double transformer_flops(int64_t dim, int64_t layers, int64_t mlp_ratio, double positions, double pairs) {
  const double d = static_cast<double>(dim);
  return static_cast<double>(layers) *
         (2 * (4.0 + 2.0 * static_cast<double>(mlp_ratio)) * d * d * positions + 4 * d * pairs);
}

}  // namespace

Summary summarize(const Dvae& model) {
  Summary summary = count(model);
  summary.forward_flops_per_sample = dvae_flops(model, model.config());
  return summary;
}

Summary summarize(const Prior& model) {
  Summary summary = count(model);
  const PriorConfig& config = model.config();
  double kinds[4] = {-1, -1, -1, -1};
  double flops = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto kind = config.layer_kind(layer);
    double& pairs = kinds[static_cast<size_t>(kind)];
    if (pairs < 0) pairs = attention_pairs(config, kind);
    flops += transformer_flops(config.dim, 1, config.mlp_ratio, static_cast<double>(config.layout().length()), pairs);
  }
  const double d = static_cast<double>(config.dim);
  flops += 2 * d * static_cast<double>(config.text_targets()) * static_cast<double>(config.text_context - 1);
  flops += 2 * d * static_cast<double>(config.image_vocab_size) * static_cast<double>(config.image_context());
  summary.forward_flops_per_sample = flops;
  return summary;
}

Summary summarize(const Clip& model) {
  Summary summary = count(model);
  const ClipConfig& config = model.config();
  const double side = static_cast<double>(config.image_size / config.patch_size), patches = side * side;
  const double text = static_cast<double>(config.text_context);
  const double patch_inputs = 3.0 * static_cast<double>(config.patch_size * config.patch_size);
  summary.forward_flops_per_sample =
      2 * patch_inputs * static_cast<double>(config.vision_dim) * patches +
      transformer_flops(config.vision_dim, config.vision_layers, 4, patches + 1, (patches + 1) * (patches + 1)) +
      transformer_flops(config.text_dim, config.text_layers, 4, text, text * (text + 1) / 2);
  return summary;
}

ActivationBytes activation_parts(const PriorConfig& config, const PriorCompute& compute, int64_t micro_batch,
                                 bool activation_checkpointing) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  const double d = number(config.dim), ratio = number(config.mlp_ratio), layers = number(config.num_layers);
  const double bytes = number(static_cast<int64_t>(c10::elementSize(compute.dtype)));
  const double head_bytes = number(static_cast<int64_t>(c10::elementSize(compute.head_dtype)));
  const bool casts_block = bytes < 4, casts_head = head_bytes < 4;
  const double slots = number(micro_batch * config.layout().length()), state = slots * d;
  ActivationBytes sum;

  // Kept of a layer: the f32 input of each block; the norms' outputs, q, k, v, attention's output and the MLP's hidden layer
  // before the non-linearity in the compute type; f32 statistics of norms and of attention. Options add inputs of norms.
  const double options = (config.sandwich_norm ? 8 : 0) + (config.qk_norm ? 8 + (casts_block ? 2 * bytes : 0) : 0);
  const double statistics = slots * 4 * (4 + number(config.num_heads));
  const double layer = state * (8 + bytes * (6 + ratio) + options) + statistics;
  const double again = state * (4 + bytes * (1 + ratio) + options / 2);  // one MLP, computed again
  sum.blocks = layers * (activation_checkpointing ? state * 8 : layer);
  sum.weight_casts = casts_block ? (activation_checkpointing ? 1 : layers) * (4 + 2 * ratio) * d * d * bytes : 0;
  // The gradient of the block's output; of the hidden layer that behind the non-linearity, that before it, and its value;
  // once the first has gone, the gradient of the weights.
  // In fp16 the gradient of the identity waits beside the scaled one (layers/scaled_runner.h).
  const double hidden = state * ratio * bytes, waiting = compute.dtype == at::kHalf ? state * 4 : 0;
  sum.block_work = (activation_checkpointing ? again : 0) + waiting + state * (4 + (casts_block ? bytes : 0)) +
                   2 * hidden + std::max(hidden, 4 * ratio * d * d);

  // A head: its rows of hidden states, where they are copied, in its type; their gradient; some rows of logits at a time
  // and their gradient (on a CPU; elsewhere 12 MiB more); its weights in the products' order, twice where several
  // stretches of rows use them; their gradient, and that of some rows.
  const auto head = [&](int64_t rows, int64_t vocab) {
    const int64_t chunk = layers::rows_of_gradients_at_once(vocab, compute.head_dtype);
    const double weights = number(vocab) * d, copies = (micro_batch > 1 ? 4 : 0) + (casts_head ? head_bytes : 0);
    const double logits = number(vocab) * (4 * number(std::min(layers::rows_of_logits_at_once(vocab, at::kCPU), rows)) +
                                           head_bytes * number(std::min(chunk, rows)));
    return number(rows) * d * (copies + head_bytes) + logits +
           weights * (4 + (rows > chunk ? (casts_head ? 2 * head_bytes : 4)
                           : casts_head ? head_bytes
                                        : 0));
  };
  const int64_t text_rows = micro_batch * (config.text_context - 1), image_rows = micro_batch * config.image_context();
  const double text_weights = 4 * number(config.text_targets()) * d;
  // Beside them the final norm's input and output in f32. The text head's gradients wait for the image's.
  sum.heads = state * 8 +
              std::max(head(text_rows, config.text_targets()),
                       number(text_rows) * d * head_bytes + text_weights + head(image_rows, config.image_vocab_size));
  sum.head_gradients = text_weights + 4 * number(config.image_vocab_size) * d;
  return sum;
}

double activation_bytes(const PriorConfig& config, const PriorCompute& compute, int64_t micro_batch,
                        bool activation_checkpointing) {
  return activation_parts(config, compute, micro_batch, activation_checkpointing).peak();
}

std::string describe(const Summary& summary, int64_t batch_size) {
  const double step = 3 * summary.forward_flops_per_sample * static_cast<double>(batch_size);
  return str("parameters: ", grouped_digits(summary.num_parameters), " in ", grouped_digits(summary.num_tensors),
             " tensors\n", "training step at batch ", batch_size, ": ", scaled(step, "FLOP"), " of matrix work");
}

}  // namespace dalle::models

// Private to the fused decoder: packed layers, and rows of the residual stream on their way through one.
#pragma once

#include <cmath>
#include <functional>
#include <optional>
#include <vector>

#include "dalle/generation/cache_kernels.h"
#include "dalle/generation/fused_model.h"

namespace dalle::generation {

/// A layer norm's parameters, f32 and contiguous.
struct FusedNorm {
  explicit FusedNorm(const layers::LayerNorm& norm);
  void apply(const float* x, int64_t rows, float* out) const;  // rows of `size` numbers; out may be x
  Tensor weight, bias;
  const float *weights, *biases;  // their numbers: asked for with every step, which tensors take their time for
  int64_t size;
  float eps;
};

struct FusedLinear {
  FusedLinear(const Tensor& weight_ON, const Tensor& bias_O, layers::WeightFormat format, layers::WeightArena& arena);
  int64_t bytes() const { return weight.bytes() + bias.numel() * 4; }
  layers::PackedWeights weight;
  Tensor bias;
  const float* biases;  // its numbers
};

struct FusedLayer {
  FusedLayer(const layers::TransformerBlock& block, layers::WeightFormat format, layers::WeightArena& arena);
  int64_t bytes() const;
  FusedNorm ln_1, ln_2;
  FusedLinear qkv, out, fc, proj;
  std::optional<FusedNorm> q_norm, k_norm, ln_1_post, ln_2_post;
};

/// Keys and values of a caption's text in all layers: matrices that rows of queries and of weights are multiplied with.
struct TextCache {
  struct Head {
    layers::PackedWeights keys;    // [T, K]
    layers::PackedWeights values;  // [K, T]
  };
  explicit TextCache(int64_t bytes) : arena(bytes) {}
  layers::WeightArena arena;  // in the order in which steps read
  std::vector<Head> heads;    // [layers * heads]
};

/// Numbers of some rows between the products, each with a stride of its own size.
struct RowBuffers {
  RowBuffers(int64_t rows, const models::PriorConfig& config);
  RowBuffers from_row(int64_t row) const;
  Tensor memory;
  int64_t dim, hidden;
  float *x, *h, *qkv, *attended, *mlp;  // [rows, D], [rows, D], [rows, 3D], [rows, D], [rows, mlp_ratio D]
};

/// What one thread needs for attention.
struct AttentionScratch {
  std::vector<float> scores;
  std::vector<uint16_t> weights;  // where the caches are bf16
  layers::ProductScratch product;
};
AttentionScratch& attention_scratch();

struct FusedModel::Parts {
  Parts(const models::Prior& prior, bool int8_weights);

  /// Runs rows through a layer. `attend` reads queries (scaled already), keys and values from rows.qkv and writes
  /// rows.attended; with only_attends the layer ends there.
  void run_layer(const FusedLayer& layer, const RowBuffers& rows, int64_t count, layers::ProductScratch& scratch,
                 const std::function<void()>& attend, bool only_attends = false) const;
  std::shared_ptr<const TextCache> text_of(const Tensor& caption_T);
  std::shared_ptr<const TextCache> prefill(const Tensor& caption_T) const;
  void prefill_attention(int64_t layer, const RowBuffers& rows, TextCache& cache, bool only_caches) const;
  const CacheLayout& layout_of(int64_t layer) const { return layouts[static_cast<size_t>(config.layer_kind(layer))]; }

  /// Blocks of a layer's cache for one candidate, and the numbers of one head's keys, or values, in one.
  int64_t cache_blocks(int64_t layer) const;
  int64_t block_numbers() const;

  const models::Prior& prior;
  const models::PriorConfig& config;
  layers::WeightFormat format, cache_format;
  layers::WeightArena arena;
  std::vector<FusedLayer> layers;
  std::vector<CacheLayout> layouts;             // of each attention kind
  std::vector<std::vector<bool>> begins_block;  // of each, whether a slot is the first to be written to its block
  FusedNorm ln_final;
  FusedLinear head;
  int64_t head_dim;
  std::vector<std::pair<Tensor, std::shared_ptr<const TextCache>>> recent;  // latest last
};

/// The candidates' steps (fused_decoder.cpp).
std::unique_ptr<Decoder> make_fused_decoder(const FusedModel::Parts& parts,
                                            std::vector<std::shared_ptr<const TextCache>> texts, int64_t batch);

}  // namespace dalle::generation

#include "dalle/generation/fused_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/generation/decode_kernels.h"
#include "fused_parts.h"

namespace dalle::generation {
namespace {

using layers::WeightFormat;

WeightFormat format_of(at::ScalarType dtype, bool int8_weights) {
  if (int8_weights) return WeightFormat::kInt8;
  return dtype == at::kFloat ? WeightFormat::kF32 : WeightFormat::kBf16;
}

std::vector<CacheLayout> layouts_of(const models::PriorConfig& config) {
  std::vector<CacheLayout> layouts;
  for (const auto& [kind, name] : EnumNames<layers::AttentionKind>::values) {
    layouts.emplace_back(kind, config.grid_size, layers::ConvMask{config.conv_kernel, config.conv_mask_edge},
                         OwnSlot::kApart);
  }
  return layouts;
}

std::vector<bool> begins_block_of(const CacheLayout& layout, int64_t slots) {
  std::vector<bool> begins, is_begun(static_cast<size_t>(layout.capacity()));
  for (int64_t slot = 0; slot < slots; ++slot) {
    const auto block = static_cast<size_t>(layout.position(slot) / detail::kBlockPositions);
    begins.push_back(!is_begun[block]);
    is_begun[block] = true;
  }
  return begins;
}

}  // namespace

FusedNorm::FusedNorm(const layers::LayerNorm& norm)
    : weight(norm.weight.tensor.contiguous()),
      bias(norm.bias.tensor.contiguous()),
      weights(weight.const_data_ptr<float>()),
      biases(bias.const_data_ptr<float>()),
      size(norm.dim),
      eps(static_cast<float>(norm.eps)) {}

void FusedNorm::apply(const float* x, int64_t rows, float* out) const {
  for (int64_t r = 0; r < rows; ++r) detail::layer_norm(x + r * size, size, weights, biases, eps, out + r * size);
}

FusedLinear::FusedLinear(const Tensor& weight_ON, const Tensor& bias_O, WeightFormat format, layers::WeightArena& arena)
    : weight(weight_ON, format, &arena), bias(bias_O.contiguous()), biases(bias.const_data_ptr<float>()) {}

FusedLayer::FusedLayer(const layers::TransformerBlock& block, WeightFormat format, layers::WeightArena& arena)
    : ln_1(block.ln_1),
      ln_2(block.ln_2),
      qkv(block.attn.in_proj_weight.tensor, block.attn.in_proj_bias.tensor, format, arena),
      out(block.attn.out_proj.weight.tensor, block.attn.out_proj.bias->tensor, format, arena),
      fc(block.mlp.c_fc.weight.tensor, block.mlp.c_fc.bias->tensor, format, arena),
      proj(block.mlp.c_proj.weight.tensor, block.mlp.c_proj.bias->tensor, format, arena) {
  if (block.attn.q_norm) q_norm.emplace(*block.attn.q_norm);
  if (block.attn.k_norm) k_norm.emplace(*block.attn.k_norm);
  if (block.ln_1_post) ln_1_post.emplace(*block.ln_1_post);
  if (block.ln_2_post) ln_2_post.emplace(*block.ln_2_post);
}

int64_t FusedLayer::bytes() const { return qkv.bytes() + out.bytes() + fc.bytes() + proj.bytes(); }

RowBuffers::RowBuffers(int64_t rows, const models::PriorConfig& config)
    : memory(at::empty({rows * config.dim * (6 + config.mlp_ratio)}, at::kFloat)),
      dim(config.dim),
      hidden(config.dim * config.mlp_ratio),
      x(memory.mutable_data_ptr<float>()),
      h(x + rows * dim),
      qkv(h + rows * dim),
      attended(qkv + rows * 3 * dim),
      mlp(attended + rows * dim) {}

RowBuffers RowBuffers::from_row(int64_t row) const {
  RowBuffers out = *this;
  out.x += row * dim;
  out.h += row * dim;
  out.qkv += row * 3 * dim;
  out.attended += row * dim;
  out.mlp += row * hidden;
  return out;
}

AttentionScratch& attention_scratch() {
  thread_local AttentionScratch scratch;
  return scratch;
}

FusedModel::Parts::Parts(const models::Prior& model, bool int8_weights)
    : prior(model),
      config(model.config()),
      format(format_of(model.compute().dtype, int8_weights)),
      cache_format(format == WeightFormat::kF32 ? WeightFormat::kF32 : WeightFormat::kBf16),
      layouts(layouts_of(config)),
      ln_final(model.ln_final),
      head(model.image_head_weights().weight_VD, model.image_head_weights().bias_V,
           format_of(model.compute().head_dtype, int8_weights), arena),
      head_dim(config.dim / config.num_heads) {
  for (const CacheLayout& layout : layouts) begins_block.push_back(begins_block_of(layout, config.image_context()));
  for (const auto& block : model.transformer.resblocks) layers.emplace_back(*block, format, arena);
}

int64_t FusedModel::Parts::cache_blocks(int64_t layer) const {
  return (layout_of(layer).capacity() + detail::kBlockPositions - 1) / detail::kBlockPositions;
}

int64_t FusedModel::Parts::block_numbers() const {
  return cache_format == WeightFormat::kF32 ? detail::block_numbers<float>(head_dim)
                                            : detail::block_numbers<uint16_t>(head_dim);
}

void FusedModel::Parts::run_layer(const FusedLayer& layer, const RowBuffers& rows, int64_t count,
                                  layers::ProductScratch& scratch, const std::function<void()>& attend,
                                  bool only_attends) const {
  const int64_t dim = rows.dim, hidden = rows.hidden;
  const auto product = [&](const float* x, int64_t depth, const FusedLinear& linear, float* out, int64_t columns) {
    layers::multiply(x, depth, count, linear.weight, linear.biases, out, columns, scratch);
  };
  const auto add = [&](const std::optional<FusedNorm>& post) {
    if (post) post->apply(rows.h, count, rows.h);
    detail::add(rows.h, count * dim, rows.x);
  };
  layer.ln_1.apply(rows.x, count, rows.h);
  product(rows.h, dim, layer.qkv, rows.qkv, 3 * dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t r = 0; r < count; ++r) {
    float *q = rows.qkv + r * 3 * dim, *k = q + dim;
    if (layer.q_norm) layer.q_norm->apply(q, config.num_heads, q);
    if (layer.k_norm) layer.k_norm->apply(k, config.num_heads, k);
    detail::multiply_by(scale, dim, q);
  }
  attend();
  if (only_attends) return;
  product(rows.attended, dim, layer.out, rows.h, dim);
  add(layer.ln_1_post);
  layer.ln_2.apply(rows.x, count, rows.h);
  product(rows.h, dim, layer.fc, rows.mlp, hidden);
  if (config.activation == layers::Activation::kGelu) {
    detail::gelu(count * hidden, rows.mlp);
  } else {
    detail::quick_gelu(count * hidden, rows.mlp);
  }
  product(rows.mlp, hidden, layer.proj, rows.h, dim);
  add(layer.ln_2_post);
}

// Text sees text causally: every query's scores against all keys, of which those up to its own count.
void FusedModel::Parts::prefill_attention(int64_t layer, const RowBuffers& rows, TextCache& cache,
                                          bool only_caches) const {
  const int64_t text = config.text_context, stride = 3 * rows.dim;
  at::parallel_for(0, config.num_heads, 1, [&](int64_t begin, int64_t end) {
    AttentionScratch& scratch = attention_scratch();
    scratch.scores.resize(std::max(scratch.scores.size(), static_cast<size_t>(text * text)));
    float* scores = scratch.scores.data();
    for (int64_t h = begin; h < end; ++h) {
      const float *q = rows.qkv + h * head_dim, *k = q + rows.dim, *v = k + rows.dim;
      auto& head_cache = cache.heads[static_cast<size_t>(layer * config.num_heads + h)];
      head_cache.keys = layers::PackedWeights(k, text, head_dim, stride, 1, cache_format, &cache.arena);
      head_cache.values = layers::PackedWeights(v, head_dim, text, 1, stride, cache_format, &cache.arena);
      if (only_caches) continue;
      layers::multiply(q, stride, text, head_cache.keys, nullptr, scores, text, scratch.product);
      for (int64_t i = 0; i < text; ++i) {
        float* row = scores + i * text;
        detail::multiply_by(1.0f / detail::exponentials(i + 1, row), i + 1, row);
        std::fill(row + i + 1, row + text, 0.0f);
      }
      layers::multiply(scores, text, text, head_cache.values, nullptr, rows.attended + h * head_dim, rows.dim,
                       scratch.product);
    }
  });
}

std::shared_ptr<const TextCache> FusedModel::Parts::prefill(const Tensor& caption_T) const {
  const c10::NoGradGuard no_grad;
  const int64_t text = config.text_context;
  // Keys and values of f32, or bf16, with their padding.
  const int64_t columns = (text + 31) / 32 * 32 * ((head_dim + 31) / 32 * 32),
                heads = config.num_layers * config.num_heads;
  auto cache = std::make_shared<TextCache>(2 * heads * columns * (cache_format == WeightFormat::kF32 ? 4 : 2));
  cache->heads.resize(static_cast<size_t>(config.num_layers * config.num_heads));
  const Tensor x_TD = prior.embed_text(caption_T.unsqueeze(0))[0].contiguous();
  RowBuffers rows(text, config);
  std::copy_n(x_TD.const_data_ptr<float>(), x_TD.numel(), rows.x);
  layers::ProductScratch scratch;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    // The last layer's text states go nowhere: images see its keys and values alone.
    const bool is_last = layer + 1 == config.num_layers;
    run_layer(
        layers[static_cast<size_t>(layer)], rows, text, scratch,
        [&] { prefill_attention(layer, rows, *cache, is_last); }, /*only_attends=*/is_last);
  }
  return cache;
}

std::shared_ptr<const TextCache> FusedModel::Parts::text_of(const Tensor& caption_T) {
  constexpr size_t kKept = 2;  // a caption and, for guidance, none
  for (auto entry = recent.begin(); entry != recent.end(); ++entry) {
    if (!at::equal(entry->first, caption_T)) continue;
    std::rotate(entry, entry + 1, recent.end());
    return recent.back().second;
  }
  auto cache = prefill(caption_T);
  if (recent.size() == kKept) recent.erase(recent.begin());
  recent.emplace_back(caption_T.clone(), cache);
  return cache;
}

bool FusedModel::fits(const models::Prior& prior) {
  const auto known = [](at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16; };
  return prior.device().is_cpu() && known(prior.compute().dtype) && known(prior.compute().head_dtype) &&
         prior.ln_final.weight.tensor.scalar_type() == at::kFloat;
}

FusedModel::FusedModel(const models::Prior& prior, bool int8_weights) {
  TORCH_CHECK_VALUE(fits(prior),
                    "[fused model] expected a prior with f32 masters on the CPU that computes in f32 or bf16");
  const c10::NoGradGuard no_grad;
  parts_ = std::make_unique<Parts>(prior, int8_weights);
}

FusedModel::~FusedModel() = default;

std::unique_ptr<Decoder> FusedModel::start(const Tensor& captions_CT, int64_t batch) {
  const int64_t text = parts_->config.text_context;
  TORCH_CHECK_VALUE(captions_CT.dim() == 2 && captions_CT.size(0) > 0 && captions_CT.size(1) == text - 1 && batch > 0,
                    "[fused model] expected captions [C, ", text - 1, "] and at least one candidate, got ",
                    captions_CT.sizes(), " and ", batch);
  std::vector<std::shared_ptr<const TextCache>> texts;
  for (int64_t c = 0; c < captions_CT.size(0); ++c) texts.push_back(parts_->text_of(captions_CT[c]));
  return make_fused_decoder(*parts_, std::move(texts), batch);
}

int64_t FusedModel::candidate_bytes() const {
  int64_t numbers = 0;
  for (int64_t layer = 0; layer < parts_->config.num_layers; ++layer) {
    numbers += 2 * parts_->config.num_heads * parts_->cache_blocks(layer) * parts_->block_numbers();
  }
  return numbers * static_cast<int64_t>(c10::elementSize(cache_type()));
}

int64_t FusedModel::weight_bytes() const {
  int64_t bytes = parts_->head.bytes();
  for (const FusedLayer& layer : parts_->layers) bytes += layer.bytes();
  return bytes;
}

double FusedModel::cache_bytes_per_step() const {
  const auto& config = parts_->config;
  int64_t positions = 0;  // over all slots
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const CacheLayout& layout = parts_->layout_of(layer);
    for (int64_t slot = 0; slot < config.image_context(); ++slot) {
      positions += 1;  // its own
      for (const CacheSpan& span : layout.visible(slot)) positions += span.size;
    }
  }
  const double each = static_cast<double>(2 * config.dim) * static_cast<double>(c10::elementSize(cache_type()));
  const double text = static_cast<double>(config.num_layers * config.text_context);
  return each * (text + static_cast<double>(positions) / static_cast<double>(config.image_context()));
}

at::ScalarType FusedModel::cache_type() const {
  return parts_->cache_format == WeightFormat::kF32 ? at::kFloat : at::kBFloat16;
}

}  // namespace dalle::generation

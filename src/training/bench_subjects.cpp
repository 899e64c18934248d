#include "dalle/training/bench_subjects.h"

#include <ATen/ATen.h>

#include <memory>

#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/layers/likelihood.h"
#include "dalle/layers/relaxation.h"
#include "dalle/layers/sparse_attention.h"
#include "dalle/models/dvae.h"
#include "dalle/models/prior.h"
#include "dalle/optim/adamw.h"

namespace dalle::training {
namespace {

Tensor random_pixels(int64_t batch, int64_t size, at::Device device) {
  const RandomKey key = random_key(1, Purpose::kEvaluation);
  return uniform_rows({&key, 1}, batch * 3 * size * size, device).view({batch, 3, size, size});
}

std::vector<RandomKey> noise_keys(int64_t batch, int64_t& calls) {
  std::vector<RandomKey> keys;
  for (int64_t i = 0; i < batch; ++i) keys.push_back(random_key(1, Purpose::kGumbel, static_cast<uint64_t>(calls++)));
  return keys;
}

Tensor likelihood_loss(const Tensor& pixels, const Tensor& stats) {
  return layers::logit_laplace_nll(layers::map_pixels(pixels), stats.slice(1, 0, 3), stats.slice(1, 3, 6)).mean();
}

// The same work as the peers' step: relaxation, likelihood, KL, backward, AdamW.
BenchSubject dvae_step(const models::DvaeConfig& config, int64_t batch, models::DvaeCompute compute,
                       at::Device device) {
  auto model = std::make_shared<models::Dvae>(config, compute);
  model->materialize(device);
  model->initialize(1);
  auto optimizer = std::make_shared<optim::AdamW>(model->named_parameters(), optim::AdamWConfig{});
  const Tensor pixels = random_pixels(batch, config.image_size, device);
  auto calls = std::make_shared<int64_t>(0);
  const auto step = [=] {
    const auto relaxed = layers::relax(model->encode_logits(pixels), noise_keys(batch, *calls), 1.0);
    const Tensor nll = likelihood_loss(pixels, model->decode_stats(relaxed.codes_BVHW));
    optimizer->zero_grad();
    (nll + relaxed.kl_BHW.mean() * (6.6 / 192)).backward();
    optimizer->step(1e-4);
  };
  return {"", step, batch};
}

// Relaxation, KL and likelihood alone, forward and backward, with 8192 codes: the fused pass, or the formula op by op.
// The logits are made within the step, and the codes go through a (small) 1x1 convolution, as in the model.
BenchSubject relaxation_step(bool fused, int64_t batch, int64_t grid, at::ScalarType type, at::Device device) {
  constexpr int64_t kVocab = 8192;
  const RandomKey key = random_key(2, Purpose::kEvaluation);
  const Tensor source = uniform_rows({&key, 1}, batch * grid * grid * kVocab, device)
                            .view({batch, grid, grid, kVocab})
                            .permute({0, 3, 1, 2})
                            .to(type);
  const Tensor pixels = random_pixels(batch, 8 * grid, device);
  const Tensor bias = at::zeros({1, kVocab, 1, 1}, source.options()), kernel = at::ones({1, kVocab}, source.options());
  auto calls = std::make_shared<int64_t>(0);
  const auto step = [=] {
    Tensor logits = source + bias.detach().requires_grad_();
    const Tensor stats = at::zeros({batch, 6, 8 * grid, 8 * grid}, pixels.options()).requires_grad_();
    const auto keys = noise_keys(batch, *calls);
    Tensor codes, kl;
    if (fused) {
      const auto relaxed = layers::relax(logits, keys, 0.5);
      codes = relaxed.codes_BVHW;
      kl = relaxed.kl_BHW;
    } else {
      const Tensor noise =
          gumbel_rows(keys, grid * grid * kVocab, device).view({batch, grid, grid, kVocab}).permute({0, 3, 1, 2});
      codes = layers::gumbel_softmax(logits, noise, 0.5);
      kl = layers::kl_to_uniform(logits);
    }
    const Tensor decoded = at::linear(codes.permute({0, 2, 3, 1}), kernel);
    logits.reset();
    codes.reset();
    (likelihood_loss(pixels, stats) + kl.mean() * (6.6 / 192) + decoded.to(at::kFloat).mean()).backward();
  };
  return {"", step, batch * grid * grid};
}

struct PriorBatch {
  Tensor captions, tokens;
};

PriorBatch random_tokens(const models::PriorConfig& config, int64_t batch, at::Device device) {
  const RandomKey keys[] = {random_key(2, Purpose::kEvaluation), random_key(3, Purpose::kEvaluation)};
  const auto draw = [&](const RandomKey& key, int64_t length, int64_t vocab) {
    return (uniform_rows({&key, 1}, batch * length, device).view({batch, length}) * static_cast<double>(vocab))
        .to(at::kLong)
        .clamp_max(vocab - 1);
  };
  return {draw(keys[0], config.text_context - 1, config.text_vocab_size),
          draw(keys[1], config.image_context(), config.image_vocab_size)};
}

std::shared_ptr<models::Prior> make_prior(const models::PriorConfig& config, const models::PriorCompute& compute,
                                          at::Device device) {
  auto model = std::make_shared<models::Prior>(config, compute);
  model->materialize(device);
  model->initialize(1);
  return model;
}

BenchSubject prior_step(const models::PriorConfig& config, int64_t batch, const models::PriorCompute& compute,
                        at::Device device) {
  auto model = make_prior(config, compute, device);
  auto optimizer = std::make_shared<optim::AdamW>(model->named_parameters(), optim::AdamWConfig{});
  const PriorBatch data = random_tokens(config, batch, device);
  const auto step = [=] {
    optimizer->zero_grad();
    const auto loss = model->loss(data.captions, data.tokens,
                                  {.text = 0.125 / static_cast<double>(data.captions.numel()),
                                   .image = 0.875 / static_cast<double>(data.tokens.numel())});
    (loss.text + loss.image).backward();
    optimizer->step(1e-4);
  };
  return {"", step, batch * config.layout().length()};
}

// Attention alone, forward and backward, 8 heads: each kind by blocks, and ATen's causal attention beside them.
BenchSubject attention_step(std::optional<layers::AttentionKind> kind, const layers::SequenceLayout& layout,
                            int64_t head_dim, at::ScalarType type, at::Device device) {
  constexpr int64_t kHeads = 8;
  const int64_t length = layout.length();
  const RandomKey key = random_key(3, Purpose::kEvaluation);
  const Tensor numbers =
      uniform_rows({&key, 1}, 4 * length * kHeads * head_dim, device).view({4, 1, length, kHeads, head_dim});
  const Tensor qkv = (numbers.slice(0, 0, 3) * 4 - 2).to(type), grad = numbers[3].to(type).transpose(1, 2);
  layers::AttendFunction attend = [](const Tensor& q, const Tensor& k, const Tensor& v) {
    return at::scaled_dot_product_attention(q, k, v, {}, /*dropout_p=*/0, /*is_causal=*/true);
  };
  if (kind) {
    attend = layers::sparse_attention(std::make_shared<layers::BlockSparsePlan>(layers::make_block_sparse_plan(
        layers::attention_mask(*kind, layout), layers::attention_order(*kind, layout, length))));
  }
  const auto step = [=] {
    const Tensor leaf = qkv.detach().requires_grad_();
    const auto parts = leaf.transpose(2, 3).unbind(0);
    attend(parts[0], parts[1], parts[2]).backward(grad);
  };
  return {"", step, length};
}

BenchConfig attention_config(const std::string& name, const layers::SequenceLayout& layout, int64_t head_dim) {
  return {BenchJob::kAttention, name, "tokens/s", [=](const BenchOptions& options, at::Device device) {
            std::vector<BenchSubject> subjects;
            for (const Precision precision : options.precision) {
              const auto type = compute_dtype(precision, device);
              const auto add = [&](std::optional<layers::AttentionKind> kind, std::string_view kind_name) {
                subjects.push_back(attention_step(kind, layout, head_dim, type, device));
                subjects.back().impl = str(kind_name, "_", enum_name(precision));
              };
              for (const auto& [kind, kind_name] : EnumNames<layers::AttentionKind>::values) add(kind, kind_name);
              add(std::nullopt, "aten_causal");
            }
            return subjects;
          }};
}

// One subject for each of --precision, named ours_<precision>.
template <class Make>
auto by_precision(Make make) {
  return [make](const BenchOptions& options, at::Device device) {
    std::vector<BenchSubject> subjects;
    for (const Precision precision : options.precision) {
      subjects.push_back(make(options, compute_dtype(precision, device), device));
      subjects.back().impl = str("ours_", enum_name(precision));
    }
    return subjects;
  };
}

BenchConfig dvae_config(const std::string& name, int64_t hidden, int64_t pixels, int64_t batch) {
  const models::DvaeConfig config{.image_size = pixels, .vocab_size = 8192, .hidden_dim = hidden};
  return {BenchJob::kDvaeTrain, name, "images/s",
          by_precision([=](const BenchOptions& options, at::ScalarType type, at::Device device) {
            const auto relaxation =
                options.relaxation_precision ? compute_dtype(*options.relaxation_precision, device) : type;
            return dvae_step(config, batch, {type, relaxation}, device);
          })};
}

BenchConfig relaxation_config(const std::string& name, int64_t grid, int64_t batch) {
  return {BenchJob::kRelaxation, name, "positions/s", [=](const BenchOptions& options, at::Device device) {
            std::vector<BenchSubject> subjects{relaxation_step(false, batch, grid, at::kFloat, device)};
            subjects.back().impl = "plain_f32";
            for (const Precision precision : options.precision) {
              subjects.push_back(relaxation_step(true, batch, grid, compute_dtype(precision, device), device));
              subjects.back().impl = str("fused_", enum_name(precision));
            }
            return subjects;
          }};
}

struct PriorSize {
  int64_t text, grid, batch, dim = 256, layers = 8;
};

BenchConfig prior_config(const std::string& name, const PriorSize& size,
                         models::LayerOrder order = models::LayerOrder::kPaper) {
  const models::PriorConfig config{.text_context = size.text,
                                   .grid_size = size.grid,
                                   .dim = size.dim,
                                   .num_heads = 8,
                                   .num_layers = size.layers,
                                   .layer_order = order};
  const int64_t batch = size.batch;
  return {BenchJob::kPriorTrain, name, "tokens/s",
          by_precision([=](const BenchOptions&, at::ScalarType type, at::Device device) {
            return prior_step(config, batch, {type, type}, device);
          })};
}

// Beside the same model with dense masks and whole logits, for the peak of tensor bytes above all.
BenchConfig prior_memory_config(const std::string& name, const PriorSize& size) {
  const models::PriorConfig config{
      .text_context = size.text, .grid_size = size.grid, .dim = size.dim, .num_heads = 8, .num_layers = size.layers};
  return {BenchJob::kPriorTrain, name, "tokens/s", [=](const BenchOptions& options, at::Device device) {
            std::vector<BenchSubject> subjects;
            for (const Precision precision : options.precision) {
              const auto type = compute_dtype(precision, device);
              for (const bool plain : {true, false}) {
                subjects.push_back(prior_step(config, size.batch, {type, type, plain}, device));
                subjects.back().impl = str(plain ? "plain_" : "ours_", enum_name(precision));
              }
            }
            return subjects;
          }};
}

}  // namespace

std::vector<BenchConfig> bench_configs() {
  std::vector<BenchConfig> configs{dvae_config("openai_nhid64_64px_b16", 64, 64, 16),
                                   dvae_config("openai_nhid256_128px_b2", 256, 128, 2),
                                   dvae_config("openai_nhid32_64px_b32", 32, 64, 32),
                                   dvae_config("openai_nhid128_64px_b8", 128, 64, 8),
                                   dvae_config("openai_nhid64_128px_b4", 64, 128, 4),
                                   dvae_config("openai_nhid256_256px_b1", 256, 256, 1),
                                   relaxation_config("grid8_b16", 8, 16),
                                   relaxation_config("grid32_b1", 32, 1),
                                   prior_config("small_64+16x16_b4", {64, 16, 4}),
                                   prior_config("small_256+32x32_b1", {256, 32, 1}),
                                   prior_memory_config("small_256+32x32_b8", {256, 32, 8}),
                                   prior_config("small_64+16x16_b4_full", {64, 16, 4}, models::LayerOrder::kFull),
                                   prior_config("small_256+32x32_b1_full", {256, 32, 1}, models::LayerOrder::kFull),
                                   prior_config("dim512x8_64+16x16_b4", {64, 16, 4, 512}),
                                   prior_config("dim512x8_256+32x32_b1", {256, 32, 1, 512}),
                                   prior_config("dim256x4_64+16x16_b16", {64, 16, 16, 256, 4}),
                                   attention_config("64+16x16_h8x32", {64, 16}, 32),
                                   attention_config("256+32x32_h8x32", {256, 32}, 32),
                                   attention_config("256+32x32_h8x64", {256, 32}, 64),
                                   tokenizer_bench_config()};
  const auto sampling = sample_bench_configs();
  configs.insert(configs.end(), sampling.begin(), sampling.end());
  for (auto& config : clip_bench_configs()) configs.push_back(std::move(config));
  return configs;
}

}  // namespace dalle::training

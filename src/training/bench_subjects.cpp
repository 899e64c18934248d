#include "dalle/training/bench_subjects.h"

#include <ATen/ATen.h>

#include <memory>
#include <numeric>

#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/generation/token_sampler.h"
#include "dalle/layers/cross_entropy.h"
#include "dalle/layers/likelihood.h"
#include "dalle/layers/relaxation.h"
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

std::shared_ptr<models::Prior> make_prior(const models::PriorConfig& config, at::ScalarType type, at::Device device) {
  auto model = std::make_shared<models::Prior>(config, models::PriorCompute{type, type});
  model->materialize(device);
  model->initialize(1);
  return model;
}

BenchSubject prior_step(const models::PriorConfig& config, int64_t batch, at::ScalarType type, at::Device device) {
  auto model = make_prior(config, type, device);
  auto optimizer = std::make_shared<optim::AdamW>(model->named_parameters(), optim::AdamWConfig{});
  const PriorBatch data = random_tokens(config, batch, device);
  const auto step = [=] {
    const auto output = model->forward(data.captions, data.tokens);
    const Tensor text =
        layers::cross_entropy_sum(output.text_logits_BTV, data.captions) / static_cast<double>(data.captions.numel());
    const Tensor image =
        layers::cross_entropy_sum(output.image_logits_BIV, data.tokens) / static_cast<double>(data.tokens.numel());
    optimizer->zero_grad();
    (text * 0.125 + image * 0.875).backward();
    optimizer->step(1e-4);
  };
  return {"", step, batch * config.layout().length()};
}

BenchSubject sampling(const models::PriorConfig& config, int64_t batch, at::ScalarType type, at::Device device) {
  auto model = make_prior(config, type, device);
  const Tensor caption = random_tokens(config, 1, device).captions[0];
  std::vector<int64_t> numbers(static_cast<size_t>(batch));
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto step = [=] { generation::sample_tokens(*model, {"bench", caption, {}}, numbers, {}); };
  return {"", step, batch * config.image_context()};
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

BenchConfig prior_config(BenchJob job, const std::string& name, int64_t text, int64_t grid, int64_t batch) {
  const models::PriorConfig config{
      .text_context = text, .grid_size = grid, .dim = 256, .num_heads = 8, .num_layers = 8};
  return {job, name, "tokens/s", by_precision([=](const BenchOptions&, at::ScalarType type, at::Device device) {
            return job == BenchJob::kSample ? sampling(config, batch, type, device)
                                            : prior_step(config, batch, type, device);
          })};
}

}  // namespace

std::vector<BenchConfig> bench_configs() {
  return {dvae_config("openai_nhid64_64px_b16", 64, 64, 16),
          dvae_config("openai_nhid256_128px_b2", 256, 128, 2),
          dvae_config("openai_nhid32_64px_b32", 32, 64, 32),
          dvae_config("openai_nhid128_64px_b8", 128, 64, 8),
          dvae_config("openai_nhid64_128px_b4", 64, 128, 4),
          dvae_config("openai_nhid256_256px_b1", 256, 256, 1),
          relaxation_config("grid8_b16", 8, 16),
          relaxation_config("grid32_b1", 32, 1),
          prior_config(BenchJob::kPriorTrain, "small_64+16x16_b4", 64, 16, 4),
          prior_config(BenchJob::kPriorTrain, "small_256+32x32_b1", 256, 32, 1),
          prior_config(BenchJob::kSample, "small_64+16x16_b1", 64, 16, 1),
          prior_config(BenchJob::kSample, "small_64+16x16_b8", 64, 16, 8),
          tokenizer_bench_config()};
}

}  // namespace dalle::training

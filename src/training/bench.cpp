#include "dalle/training/bench.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/generation/token_sampler.h"
#include "dalle/layers/cross_entropy.h"
#include "dalle/layers/likelihood.h"
#include "dalle/layers/relaxation.h"
#include "dalle/models/dvae.h"
#include "dalle/models/prior.h"
#include "dalle/optim/adamw.h"

namespace dalle::training {
namespace {

/// One thing to time: a call of `step` does `items` units of work.
struct Subject {
  std::string impl;
  std::function<void()> step;
  int64_t items;
};

/// A named size of a job; build() makes the model and its step at a precision.
struct BenchConfig {
  BenchJob job;
  std::string name;
  std::string unit;
  std::function<Subject(at::ScalarType, at::Device)> build;
};

double seconds_of(const std::function<void()>& step, at::Device device) {
  const auto begin = std::chrono::steady_clock::now();
  step();
  if (device.is_cuda()) at::zeros({1}, device).item<float>();  // waits for the device
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

// The same work as the peers' step: relaxation, likelihood, KL, backward, AdamW.
Subject dvae_step(const models::DvaeConfig& config, int64_t batch, at::ScalarType dtype, at::Device device) {
  auto model = std::make_shared<models::Dvae>(config, models::DvaeCompute{dtype, dtype});
  model->materialize(device);
  model->initialize(1);
  auto optimizer = std::make_shared<optim::AdamW>(model->named_parameters(), optim::AdamWConfig{});
  const RandomKey key = random_key(1, Purpose::kEvaluation);
  const Tensor pixels = uniform_rows({&key, 1}, batch * 3 * config.image_size * config.image_size, device)
                            .view({batch, 3, config.image_size, config.image_size});
  auto calls = std::make_shared<int64_t>(0);
  const auto step = [=] {
    const int64_t grid = config.grid_size();
    std::vector<RandomKey> keys;
    for (int64_t i = 0; i < batch; ++i)
      keys.push_back(random_key(1, Purpose::kGumbel, static_cast<uint64_t>((*calls)++)));
    const Tensor noise = gumbel_rows(keys, grid * grid * config.vocab_size, device)
                             .view({batch, grid, grid, config.vocab_size})
                             .permute({0, 3, 1, 2});
    const Tensor logits = model->encode_logits(pixels);
    const Tensor stats = model->decode_stats(layers::gumbel_softmax(logits, noise, 1.0));
    const Tensor nll =
        layers::logit_laplace_nll(layers::map_pixels(pixels), stats.slice(1, 0, 3), stats.slice(1, 3, 6)).mean();
    optimizer->zero_grad();
    (nll + layers::kl_to_uniform(logits).mean() * (6.6 / 192)).backward();
    optimizer->step(1e-4);
  };
  return {"", step, batch};
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

std::shared_ptr<models::Prior> make_prior(const models::PriorConfig& config, at::ScalarType dtype, at::Device device) {
  auto model = std::make_shared<models::Prior>(config, models::PriorCompute{dtype, dtype});
  model->materialize(device);
  model->initialize(1);
  return model;
}

Subject prior_step(const models::PriorConfig& config, int64_t batch, at::ScalarType dtype, at::Device device) {
  auto model = make_prior(config, dtype, device);
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

Subject sampling(const models::PriorConfig& config, int64_t batch, at::ScalarType dtype, at::Device device) {
  auto model = make_prior(config, dtype, device);
  const Tensor caption = random_tokens(config, 1, device).captions[0];
  std::vector<int64_t> numbers(static_cast<size_t>(batch));
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto step = [=] { generation::sample_tokens(*model, {"bench", caption, {}}, numbers, {}); };
  return {"", step, batch * config.image_context()};
}

// Names and sizes follow the peers' benchmark scripts.
std::vector<BenchConfig> all_configs() {
  const auto dvae = [](std::string name, int64_t hidden, int64_t pixels, int64_t batch) {
    const models::DvaeConfig config{.image_size = pixels, .vocab_size = 8192, .hidden_dim = hidden};
    return BenchConfig{BenchJob::kDvaeTrain, std::move(name), "images/s", [=](at::ScalarType dtype, at::Device device) {
                         return dvae_step(config, batch, dtype, device);
                       }};
  };
  const auto prior = [](BenchJob job, std::string name, int64_t text, int64_t grid, int64_t batch) {
    const models::PriorConfig config{
        .text_context = text, .grid_size = grid, .dim = 256, .num_heads = 8, .num_layers = 8};
    return BenchConfig{job, std::move(name), "tokens/s", [=](at::ScalarType dtype, at::Device device) {
                         return job == BenchJob::kSample ? sampling(config, batch, dtype, device)
                                                         : prior_step(config, batch, dtype, device);
                       }};
  };
  return {dvae("openai_nhid64_64px_b16", 64, 64, 16),
          dvae("openai_nhid256_128px_b2", 256, 128, 2),
          prior(BenchJob::kPriorTrain, "small_64+16x16_b4", 64, 16, 4),
          prior(BenchJob::kPriorTrain, "small_256+32x32_b1", 256, 32, 1),
          prior(BenchJob::kSample, "small_64+16x16_b1", 64, 16, 1),
          prior(BenchJob::kSample, "small_64+16x16_b8", 64, 16, 8)};
}

void run_config(const BenchConfig& config, const BenchOptions& options, at::Device device) {
  std::vector<Subject> subjects;
  for (const Precision precision : options.precision) {
    Subject subject = config.build(compute_dtype(precision, device), device);
    subject.impl = "ours_" + std::string(enum_name(precision));
    for (int i = 0; i < options.warmup; ++i) subject.step();
    subjects.push_back(std::move(subject));
  }
  std::vector<std::vector<double>> seconds(subjects.size());
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < subjects.size(); ++i) {
      const size_t turn = round % 2 == 0 ? i : subjects.size() - 1 - i;
      seconds[turn].push_back(seconds_of(subjects[turn].step, device));
    }
  }
  for (size_t i = 0; i < subjects.size(); ++i) {
    const double items = static_cast<double>(subjects[i].items), median = quantile(seconds[i], 0.5);
    nlohmann::ordered_json line{{"job", enum_name(options.job)},
                                {"config", config.name},
                                {"impl", subjects[i].impl},
                                {"unit", config.unit},
                                {"median", items / median},
                                {"best", items / quantile(seconds[i], 0)},
                                {"spread", (quantile(seconds[i], 0.9) - quantile(seconds[i], 0.1)) / median},
                                {"rounds", options.rounds},
                                {"threads", options.threads},
                                {"device", describe_device(device)}};
    if (i > 0) {
      std::vector<double> ratios;
      for (size_t round = 0; round < seconds[i].size(); ++round)
        ratios.push_back(seconds[0][round] / seconds[i][round]);
      line["ratio_to_ref"] = quantile(ratios, 0.5);
      line["ref"] = subjects[0].impl;
    }
    std::cout << line.dump() << std::endl;
  }
}

}  // namespace

int run_bench(const BenchOptions& options) {
  set_num_threads(options.threads);
  const at::Device device = select_device(options.device);
  std::vector<std::string> names;
  bool found = false;
  for (const auto& config : all_configs()) {
    if (config.job != options.job) continue;
    names.push_back(config.name);
    if (config.name.find(options.config) == std::string::npos) continue;
    found = true;
    run_config(config, options, device);
  }
  if (found) return 0;
  std::string known;
  for (const auto& name : names) known += (known.empty() ? "" : ", ") + name;
  throw ConfigError(Problem{"--config", "part of one of: " + known, "'" + options.config + "'", ""});
}

}  // namespace dalle::training

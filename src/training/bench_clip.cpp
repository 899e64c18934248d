// Scoring by CLIP: pictures and captions to cosines, random weights, both activations that published models have.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <memory>

#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/models/clip.h"
#include "dalle/training/bench_subjects.h"

namespace dalle::training {
namespace {

constexpr int64_t kPairs = 32;

Tensor random_rows(uint64_t purpose, int64_t count, at::Device device) {
  const RandomKey key = random_key(purpose, Purpose::kEvaluation);
  return uniform_rows({&key, 1}, count, device);
}

/// Rows of pieces with the end of text at slot `end`.
Tensor random_captions(const models::ClipConfig& config, int64_t end, at::Device device) {
  const double pieces = static_cast<double>(config.text_vocab_size - 2);
  Tensor ids = random_rows(6, kPairs * config.text_context, device).view({kPairs, -1}).mul(pieces).to(at::kLong);
  ids.select(1, 0).fill_(config.text_vocab_size - 2);
  ids.select(1, end).fill_(config.text_vocab_size - 1);
  ids.slice(1, end + 1).zero_();
  return ids;
}

BenchSubject scoring(const models::ClipConfig& config, int64_t end, at::ScalarType type, at::Device device) {
  auto model = std::make_shared<models::Clip>(config, type);
  model->materialize(device);
  model->initialize(1);
  model->pack_for_inference();
  const int64_t size = config.image_size;
  const Tensor pixels = random_rows(5, kPairs * 3 * size * size, device).view({kPairs, 3, size, size});
  const Tensor ids = random_captions(config, end, device);
  const auto step = [=] {
    const c10::NoGradGuard no_grad;
    (model->encode_image(pixels) * model->encode_text(ids)).sum(-1);
  };
  return {"", step, kPairs};
}

BenchConfig clip_config(const std::string& name, layers::Activation activation, int64_t end) {
  return {BenchJob::kClipScore, name, "pairs/s", [=](const BenchOptions& options, at::Device device) {
            std::vector<BenchSubject> subjects;
            for (const Precision precision : options.precision) {
              subjects.push_back(scoring({.activation = activation}, end, compute_dtype(precision, device), device));
              subjects.back().impl = str("ours_", enum_name(precision));
            }
            return subjects;
          }};
}

}  // namespace

std::vector<BenchConfig> clip_bench_configs() {
  constexpr int64_t kCaptionEnd = 20,
                    kLastSlot = 76;  // captions of 19 pieces, as in the peers' benchmark; and of all 75
  return {clip_config("vit_b32_b32", layers::Activation::kGelu, kCaptionEnd),
          clip_config("vit_b32_b32_quickgelu", layers::Activation::kQuickGelu, kCaptionEnd),
          clip_config("vit_b32_b32_full_text", layers::Activation::kGelu, kLastSlot)};
}

}  // namespace dalle::training

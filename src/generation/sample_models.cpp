#include "sample_models.h"

#include <algorithm>
#include <charconv>

#include "dalle/core/error.h"
#include "dalle/core/memory.h"
#include "dalle/core/str.h"
#include "dalle/generation/batches.h"

namespace dalle::generation {
namespace {

std::filesystem::path part_of_bundle(const std::filesystem::path& given, const std::filesystem::path& run,
                                     const char* name) {
  if (!given.empty() || run.empty()) return given;
  return run / name;
}

// The dVAE's tokens mean something only to the prior that was trained on them.
void check_same_dvae(const models::Loaded<models::Prior>& prior, const models::Loaded<models::Dvae>& dvae) {
  const auto recorded = prior.identities.find("dvae");
  if (recorded == prior.identities.end()) return;
  const bool same = recorded->second == dvae.identity ||
                    std::any_of(dvae.identities.begin(), dvae.identities.end(),
                                [&](const auto& entry) { return entry.second == recorded->second; });
  if (same) return;
  throw ConfigError(Problem{
      dvae.path.string(), str("the dVAE that ", prior.path.string(), " was trained with, identity ", recorded->second),
      dvae.identity, "give the dVAE of the prior's own run"});
}

}  // namespace

Precision model_precision(SamplePrecision precision) {
  switch (precision) {
    case SamplePrecision::kF32:
      return Precision::kF32;
    case SamplePrecision::kBf16:
      return Precision::kBf16;
    case SamplePrecision::kFp16:
      return Precision::kFp16;
    case SamplePrecision::kAuto:
    case SamplePrecision::kInt8:
      break;
  }
  return Precision::kAuto;
}

SampleModels load_sample_models(const SampleOptions& options, at::Device device) {
  SampleModels loaded;
  loaded.device = device;
  const models::LoadOptions load{
      .device = loaded.device, .precision = model_precision(options.precision), .use_ema = !options.raw_weights};
  loaded.prior = models::load_prior(part_of_bundle(options.prior, options.run, "prior"), load);
  loaded.dvae = models::load_dvae(part_of_bundle(options.dvae, options.run, "dvae"), load);
  check_same_dvae(loaded.prior, loaded.dvae);
  loaded.sampler = std::make_unique<TokenSampler>(
      *loaded.prior.model, DecodeOptions{.int8_weights = options.precision == SamplePrecision::kInt8});
  if (loaded.prior.tokenizer.empty())
    throw CheckpointError(loaded.prior.path.string() + ": the prior's checkpoint has no tokenizer");
  loaded.captions = std::make_unique<text::CaptionEncoder>(text::Tokenizer::from_bytes(loaded.prior.tokenizer),
                                                           loaded.prior.model->config().max_caption_tokens());
  loaded.used = {{"prior", loaded.prior.path.string(), loaded.prior.identity, loaded.prior.step},
                 {"dvae", loaded.dvae.path.string(), loaded.dvae.identity, loaded.dvae.step},
                 {"tokenizer", loaded.prior.path.string(), loaded.captions->tokenizer().identity(), -1}};
  const auto clip = part_of_bundle(options.clip, options.run, "clip");
  if (options.rerank == RerankBy::kClip) {
    if (clip.empty()) {
      throw ConfigError(
          Problem{"--rerank clip", "--clip CKPT", "none", "give a CLIP, or --rerank likelihood, or --rerank none"});
    }
    loaded.clip = models::load_clip(clip, load);
    loaded.clip_tokenizer = models::clip_tokenizer(*loaded.clip);
    loaded.used.push_back({"clip", loaded.clip->path.string(), loaded.clip->identity, loaded.clip->step});
  }
  return loaded;
}

int64_t plan_batch_size(const SampleModels& models, const SampleOptions& options, int ranks_here, int64_t candidates) {
  if (options.batch_size != "auto") {
    int64_t number = 0;
    const char* end = options.batch_size.data() + options.batch_size.size();
    const auto [stop, error] = std::from_chars(options.batch_size.data(), end, number);
    if (error != std::errc() || stop != end || number < 1) {
      throw ConfigError(Problem{"--batch-size", "auto or a number >= 1", "'" + options.batch_size + "'", ""});
    }
    return std::min(number, candidates);
  }
  // More than this at a time gains no speed. A GPU's memory is found out by trying (generation/batches.h).
  const int64_t most = std::min<int64_t>(candidates, models.device.is_cpu() ? 128 : 512);
  if (!models.device.is_cpu()) return most;
  const auto& dvae = models.dvae.model->config();
  const int64_t pixels = dvae.image_size * dvae.image_size;
  const int64_t decoding =
      kDecodeTogether * 4 * (dvae.vocab_size * dvae.grid_size() * dvae.grid_size() + 8 * pixels * dvae.hidden_dim);
  const int64_t captions = options.guidance == 1 ? 1 : 2;  // caches with and without the caption
  const int64_t each = captions * models.sampler->model().candidate_bytes() + 2 * 3 * 4 * pixels;
  return batch_that_fits(
      {.available = available_memory_bytes(), .fixed = decoding, .each = each, .num_processes = ranks_here}, most);
}

}  // namespace dalle::generation

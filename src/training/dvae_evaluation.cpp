#include "dalle/training/dvae_evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "dalle/core/str.h"
#include "dalle/evaluation/code_usage.h"
#include "dalle/generation/picture_quality.h"
#include "dalle/layers/relaxation.h"
#include "dalle/training/dvae_relaxation.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

/// What the decoder says to each kind of code: statistics [B, 6, S, S].
struct Decoded {
  Tensor relaxed, hard, argmax;
  Tensor codes_BHW;  // argmax
  double kl = 0;     // mean over positions, summed over pictures
};

Decoded decode_each(const models::Dvae& model, const DvaeTraining& config, const Tensor& pixels,
                    const std::vector<int64_t>& positions, double temperature,
                    layers::BlockRunner& runner = layers::plain_runner()) {
  // In f32, whatever the training's type: in bf16 many relaxed codes are equal, and their argmax would be no fair draw.
  const Tensor given = model.encode_logits(pixels, runner);
  const Tensor logits = given.to(at::promote_types(given.scalar_type(), at::kFloat));
  Decoded out;
  out.codes_BHW = model.codes_of(logits);
  out.argmax = model.decode_stats(model.decoder_input(out.codes_BHW), runner);
  if (model.quantizer != nullptr) {
    out.relaxed = out.hard = out.argmax;
    out.kl = static_cast<double>(pixels.size(0)) * std::log(static_cast<double>(config.model.vocab_size));
    return out;
  }
  const layers::Relaxation relaxed = relax_codes(logits, positions,
                                                 {.seed = static_cast<uint64_t>(config.trainer.seed),
                                                  .purpose = Purpose::kEvaluation,
                                                  .temperature = temperature});
  out.relaxed = model.decode_stats(relaxed.codes_BVHW, runner);
  out.hard = model.decode_stats(model.decoder_input(layers::argmax_codes(relaxed.codes_BVHW)), runner);
  out.kl = relaxed.kl_BHW.mean({1, 2}).sum().item<double>();
  return out;
}

struct Sums {
  double images = 0, relaxed = 0, hard = 0, argmax = 0, kl = 0, psnr = 0, ssim = 0;
};

void add_to_sums(const models::Dvae& model, const DvaeTraining& config, const Tensor& pixels, const Decoded& decoded,
                 Sums& sums) {
  const auto nll = [&](const Tensor& stats) {
    return layers::pixel_nll(config.model.likelihood, pixels, stats, config.relaxation.min_log_scale)
        .sum(at::kDouble)
        .item<double>();
  };
  const Tensor picture = model.picture_of(decoded.argmax);
  sums.images += static_cast<double>(pixels.size(0));
  sums.relaxed += nll(decoded.relaxed);
  sums.hard += nll(decoded.hard);
  sums.argmax += nll(decoded.argmax);
  sums.kl += decoded.kl;
  sums.psnr += generation::psnr(pixels, picture).sum().item<double>();
  sums.ssim += generation::ssim(pixels, picture).sum().item<double>();
}

Metrics summary_of(const Sums& sums, const evaluation::CodeUsage& usage, const models::DvaeConfig& model,
                   double temperature) {
  const double positions = static_cast<double>(model.grid_size() * model.grid_size());
  const double sub_pixels = static_cast<double>(3 * model.image_size * model.image_size);
  const double vocab = static_cast<double>(model.vocab_size);
  const double relaxed = sums.relaxed / (sums.images * sub_pixels), hard = sums.hard / (sums.images * sub_pixels);
  const double argmax = sums.argmax / (sums.images * sub_pixels), kl = sums.kl / sums.images;
  const double share = positions / sub_pixels;
  Metrics metrics{{"nll_relaxed", relaxed},
                  {"nll_hard", hard},
                  {"nll_argmax", argmax},
                  {"elb_relaxed", relaxed + share * kl},
                  {"elb_hard", hard + share * kl},
                  {"elb_argmax", argmax + share * std::log(vocab)},
                  {"elb_gap", hard - relaxed},
                  {"kl", kl},
                  {"psnr", sums.psnr / sums.images},
                  {"ssim", sums.ssim / sums.images},
                  {"codes_used", usage.share_used()},
                  {"dead_codes", vocab - static_cast<double>(usage.num_used())},
                  {"perplexity", usage.perplexity()}};
  if (model.quantizer == models::Quantizer::kGumbel) metrics.emplace_back("temperature", temperature);
  return metrics;
}

}  // namespace

Metrics evaluate_dvae(const models::Dvae& model, const DvaeTraining& config, const data::Dataset& validation,
                      double temperature, distributed::Communicator& ranks, layers::BlockRunner& runner) {
  const c10::NoGradGuard no_grad;
  const int64_t count = validation_size(validation, config.validation);
  evaluation::CodeUsage usage(config.model.vocab_size);
  Sums sums;
  for (const auto& [first, size] : own_batches(count, config.validation.batch_size, ranks)) {
    ranks.note(str("validation, sample ", first));
    const auto batch =
        data::load_range(validation, config.data, config.model.image_size, first, size, {}, data::RangeIs::kMayBeEmpty);
    if (batch.keys.empty()) {  // others may need this rank's parts of the blocks
      const int64_t side = config.model.image_size;
      const auto options = at::TensorOptions(at::kFloat).device(model.device());
      decode_each(model, config, at::zeros({1, 3, side, side}, options), {0}, temperature, runner);
      continue;
    }
    const Tensor pixels = to_unit_range(batch.images, model.device());
    const Decoded decoded = decode_each(model, config, pixels, batch.positions, temperature, runner);
    add_to_sums(model, config, pixels, decoded, sums);
    usage.add(decoded.codes_BHW);
  }
  ranks.all_reduce_sum(usage.counts());
  sum_over_ranks({&sums.images, &sums.relaxed, &sums.hard, &sums.argmax, &sums.kl, &sums.psnr, &sums.ssim}, ranks);
  return summary_of(sums, usage, config.model, temperature);
}

std::vector<std::string> dvae_metric_names(const models::DvaeConfig& config) {
  std::vector<std::string> names;
  for (const auto& [name, value] : summary_of({.images = 1}, evaluation::CodeUsage(config.vocab_size), config, 0)) {
    names.push_back(name);
  }
  return names;
}

Sheet reconstruction_sheet(const models::Dvae& model, const DvaeTraining& config, const data::Dataset& shown,
                           double temperature, const std::string& title) {
  const c10::NoGradGuard no_grad;
  const int64_t count = std::min<int64_t>(8, shown.size());
  const auto batch = data::load_range(shown, config.data, config.model.image_size, 0, count);
  const Tensor pixels = to_unit_range(batch.images, model.device());
  const Decoded decoded = decode_each(model, config, pixels, batch.positions, temperature);
  const auto row = [&](const std::string& label, const Tensor& stats) {
    return generation::SheetRow{label, generation::make_cells(model.picture_of(stats))};
  };
  std::vector<generation::SheetRow> rows{{"original", generation::make_cells(pixels)}};
  if (model.quantizer == nullptr) {
    rows.push_back(row("relaxed, temperature " + short_number(temperature), decoded.relaxed));
    rows.push_back(row("hard sample of q", decoded.hard));
    rows.push_back(row("argmax codes", decoded.argmax));
  } else {
    rows.push_back(row("nearest codes", decoded.argmax));
  }
  return {"reconstructions", generation::labelled_rows(rows, {.title = title})};
}

}  // namespace dalle::training

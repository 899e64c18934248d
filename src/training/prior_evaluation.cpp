#include "dalle/training/prior_evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/core/str.h"
#include "dalle/generation/heat_map.h"
#include "dalle/layers/cross_entropy.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

constexpr int64_t kMostLogits = int64_t{1} << 25;  // f32 numbers at a time: 128 MiB

double sum_where(const Tensor& values, const Tensor& mask) {
  return values.masked_select(mask).sum(at::kDouble).item<double>();
}

double count(const Tensor& mask) { return static_cast<double>(mask.sum().item<int64_t>()); }

}  // namespace

void PriorLosses::add(const models::Prior& model, const Tensor& caption_BT, const Tensor& codes_BI,
                      layers::BlockRunner& runner) {
  const c10::NoGradGuard no_grad;
  const auto& config = model.config();
  const int64_t text = config.text_context;
  const Tensor hidden_BLD = model.hidden(caption_BT, codes_BI, runner);
  const Tensor targets_BT = model.text_targets(caption_BT), is_pad_BT = caption_BT < 0;
  const int64_t largest = std::max(text * config.text_targets(), config.image_context() * config.image_vocab_size);
  const int64_t chunk = std::max<int64_t>(1, kMostLogits / largest);
  if (!image_I_.defined()) image_I_ = at::zeros({config.image_context()}, at::kDouble);
  for (int64_t first = 0; first < codes_BI.size(0); first += chunk) {
    const auto part = [&](const Tensor& tensor) { return tensor.slice(0, first, first + chunk); };
    const Tensor text_logits = model.text_logits(part(hidden_BLD).slice(1, 0, text - 1));
    const Tensor text_BT = layers::cross_entropy_each(text_logits, part(targets_BT));
    text_ += sum_where(text_BT, part(is_pad_BT).logical_not());
    pads_ += sum_where(text_BT, part(is_pad_BT));
    const Tensor image_logits = model.image_logits(part(hidden_BLD).slice(1, text));
    image_I_ += layers::cross_entropy_each(image_logits, part(codes_BI)).sum(0, false, at::kDouble).to(at::kCPU);
  }
  counts_pads_ = config.text_loss_on_pads;
  num_text_ += count(is_pad_BT.logical_not());
  num_pads_ += counts_pads_ ? count(is_pad_BT) : 0;
  num_samples_ += codes_BI.size(0);
}

void PriorLosses::add_ranks(distributed::Communicator& ranks, int64_t image_context) {
  if (ranks.world_size() == 1) return;
  if (!image_I_.defined()) image_I_ = at::zeros({image_context}, at::kDouble);
  ranks.all_reduce_sum(image_I_);
  auto samples = static_cast<double>(num_samples_);
  double has_pads = counts_pads_ ? 1 : 0;
  sum_over_ranks({&text_, &num_text_, &pads_, &num_pads_, &samples, &has_pads}, ranks);
  num_samples_ = static_cast<int64_t>(samples);
  counts_pads_ = has_pads > 0;
}

Metrics PriorLosses::metrics(const std::string& prefix, double text_weight, double image_weight) const {
  const auto mean = [](double sum, double count) { return sum / std::max(1.0, count); };
  const double image = position_loss().mean().item<double>();
  const double with_pads = mean(text_ + pads_, num_text_ + num_pads_);
  const double values[] = {text_weight * with_pads + image_weight * image, image, mean(text_, num_text_), with_pads,
                           mean(pads_, num_pads_)};
  Metrics metrics;
  for (const auto& name : names(prefix, counts_pads_)) metrics.emplace_back(name, values[metrics.size()]);
  return metrics;
}

std::vector<std::string> PriorLosses::names(const std::string& prefix, bool has_pad_targets) {
  std::vector<std::string> names{prefix + "loss", prefix + "image_loss", prefix + "text_loss"};
  if (has_pad_targets) names.insert(names.end(), {prefix + "text_loss_with_pads", prefix + "pad_loss"});
  return names;
}

Tensor PriorLosses::position_loss() const {
  TORCH_CHECK_VALUE(num_samples_ > 0, "[prior losses] no samples were added");
  const auto grid = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(image_I_.numel()))));
  return (image_I_ / num_samples_).view({grid, grid});
}

Sheet position_loss_sheet(const PriorLosses& losses, const std::string& data_name, int64_t step) {
  const Tensor map = losses.position_loss();
  std::string subtitle =
      str(losses.num_samples(), " ", data_name, " pictures at step ", step, "; mean ",
          short_number(map.mean().item<double>()), ", first token ", short_number(map[0][0].item<double>()));
  if (map.size(0) > 1) {
    subtitle += str(", first row ", short_number(map[0].mean().item<double>()), ", other rows ",
                    short_number(map.slice(0, 1).mean().item<double>()));
  }
  return {"position-loss",
          generation::heat_map(
              map, {.title = "image loss by position of the token", .subtitle = subtitle, .unit = "nats per token"})};
}

}  // namespace dalle::training

#include "dalle/training/finite_check.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>

#include "dalle/core/str.h"

namespace dalle::training {
namespace {

bool all_finite(const Tensor& values) { return at::isfinite(values).all().item<bool>(); }

std::string number_text(double value) {
  if (std::isfinite(value)) return str(value);
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";  // a NaN may print its sign
}

// "a, b, c and 4 more" of at most `shown` names.
std::string listed(const std::vector<std::string>& names, size_t shown) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < shown; ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > shown ? str(text, " and ", names.size() - shown, " more") : text;
}

}  // namespace

std::string SkippedUpdate::report() const {
  std::vector<std::string> losses, gradients, keys;
  for (const auto& [name, value] : numbers.losses) {
    if (!all_finite(value)) losses.push_back(str(name, " = ", number_text(value.item<double>())));
  }
  const Tensor norms = numbers.gradients.norms_P.cpu();
  for (size_t i = 0; i < numbers.gradients.names.size(); ++i) {
    if (!std::isfinite(norms.const_data_ptr<double>()[i])) gradients.push_back(numbers.gradients.names[i]);
  }
  const auto& micro = numbers.micro_losses;
  const bool any_bad = has_bad_micro_batch();
  for (size_t i = 0; i < micro.size(); ++i) {
    if (any_bad && all_finite(micro[i])) continue;
    keys.insert(keys.end(), numbers.keys[i].begin(), numbers.keys[i].end());
  }
  std::string text = losses.empty() ? "the loss is finite" : "not finite: " + listed(losses, 4);
  text += str("; gradients of ", gradients.size(), " of ", numbers.gradients.names.size(), " parameters");
  if (!gradients.empty()) text += str(" (", listed(gradients, 3), ")");
  return str(text, " are not finite; batch: ", listed(keys, 8));
}

bool SkippedUpdate::has_bad_micro_batch() const {
  const auto& micro = numbers.micro_losses;
  return std::any_of(micro.begin(), micro.end(), [](const Tensor& loss) { return !all_finite(loss); });
}

FiniteCheck::FiniteCheck(int64_t delay) : delay_(delay) {
  TORCH_CHECK_VALUE(delay >= 0, "[finite check] delay must not be negative, got ", delay);
}

int64_t FiniteCheck::default_delay(at::Device device) { return device.is_cpu() ? 0 : 1; }

Tensor FiniteCheck::judge(UpdateNumbers numbers, const Tensor& norm) {
  const Tensor loss = numbers.losses.front().second;
  const Tensor skip = at::isfinite(norm).logical_and(at::isfinite(loss)).logical_not().to(at::kFloat);
  Pending& pending = pending_.emplace_back(Pending{std::move(numbers), skip, std::nullopt});
  if (!skip.is_cpu()) {
    pending.flag = at::empty({}, at::TensorOptions(at::kFloat).pinned_memory(true));
    pending.flag.copy_(skip, /*non_blocking=*/true);
    const c10::DeviceType type = skip.device().type();
    pending.arrived.emplace(type);
    pending.arrived->record(c10::impl::VirtualGuardImpl(type).getStream(skip.device()));
  }
  return skip;
}

std::optional<SkippedUpdate> FiniteCheck::next_before(int64_t step) {
  while (!pending_.empty() && pending_.front().numbers.step < step) {
    Pending update = std::move(pending_.front());
    pending_.pop_front();
    if (update.arrived) update.arrived->synchronize();
    if (update.flag.item<float>() == 0) {
      in_row_ = 0;
      continue;
    }
    ++in_row_;
    ++total_;
    return SkippedUpdate{update.numbers.step, in_row_, total_, std::move(update.numbers)};
  }
  return std::nullopt;
}

}  // namespace dalle::training

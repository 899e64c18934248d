#include "dalle/optim/sixteen_bit_moments.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "dalle/core/small_floats.h"
#include "dalle/core/vectorise.h"

namespace dalle::optim {
namespace {

// Means are cut at their largest number rather than lost: gradients are clipped to a norm far below it anyway.
constexpr Overflow kOverflow = Overflow::kClamp;

struct Factors {
  float decay, mean_rate, square_keep, square_rate, step_size, root_scale, eps;
};

DALLE_VECTORISED void update_loop(float* weight, const float* gradient, uint16_t* means, uint16_t* squares,
                                  int64_t size, const Factors& given) {
  const Factors f = given;
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradient[i], old_mean = small_float_to_float<kFloat169>(means[i]);
    const float mean = old_mean + f.mean_rate * (g - old_mean);
    const float free_square = f.square_keep * small_float_to_float<kFloat0610>(squares[i]) + f.square_rate * g * g;
    const float square = free_square > kLargestVariance ? kLargestVariance : free_square;  // NaN stays
    weight[i] = weight[i] * f.decay - f.step_size * mean / (__builtin_sqrtf(square) * f.root_scale + f.eps);
    means[i] = float_to_small_float<kFloat169>(mean, kOverflow);
    squares[i] = float_to_small_float<kFloat0610>(square, kOverflow);
  }
}

constexpr int64_t kMomentGrain = 1 << 14;

bool walks_as_memory(const Tensor& weight, const Tensor& gradient, const Tensor& exp_avg, const Tensor& exp_avg_sq) {
  if (!weight.is_cpu() || !weight.is_non_overlapping_and_dense()) return false;
  for (const Tensor& other : {gradient, exp_avg, exp_avg_sq}) {
    if (!other.is_non_overlapping_and_dense()) return false;
    for (int64_t d = 0; d < weight.dim(); ++d) {
      if (weight.size(d) != 1 && other.stride(d) != weight.stride(d)) return false;
    }
  }
  return true;
}

}  // namespace

void adamw_by_operators(const Tensor& weight, const Tensor& gradient, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                        const Tensor& step, const AdamWNumbers& numbers, const Tensor& skip) {
  const c10::NoGradGuard no_grad;
  const Tensor steps = step.to(at::kDouble);
  const auto bias_correction = [&](double beta) { return 1 - at::pow(at::full_like(steps, beta), steps); };
  const Tensor step_size = (numbers.lr / bias_correction(numbers.beta1)).to(at::kFloat);
  const Tensor root_scale = bias_correction(numbers.beta2).rsqrt().to(at::kFloat);
  const Tensor mean = at::lerp(decode_small_floats(exp_avg, kFloat169), gradient, 1 - numbers.beta1);
  const Tensor square =
      (decode_small_floats(exp_avg_sq, kFloat0610) * numbers.beta2 + gradient * gradient * (1 - numbers.beta2))
          .clamp_max(kLargestVariance);
  const Tensor updated = weight.detach() * (1 - numbers.lr * numbers.weight_decay) -
                         step_size * mean / (square.sqrt() * root_scale + numbers.eps);
  const auto replace = [&](const Tensor& target, const Tensor& value) {
    target.copy_(skip.defined() ? at::where(skip.gt(0), target, value) : value);
  };
  replace(exp_avg, encode_small_floats(mean, kFloat169, kOverflow));
  replace(exp_avg_sq, encode_small_floats(square, kFloat0610, kOverflow));
  replace(weight.detach(), updated);
}

void adamw_with_sixteen_bit_moments(const Tensor& weight, const Tensor& gradient, const Tensor& exp_avg,
                                    const Tensor& exp_avg_sq, const Tensor& step, const AdamWNumbers& numbers,
                                    const Tensor& skip) {
  if (!walks_as_memory(weight, gradient, exp_avg, exp_avg_sq)) {
    return adamw_by_operators(weight, gradient, exp_avg, exp_avg_sq, step, numbers, skip);
  }
  if (skip.defined() && skip.item<float>() > 0) return;
  const double steps = step.item<float>();
  const Factors factors{.decay = static_cast<float>(1 - numbers.lr * numbers.weight_decay),
                        .mean_rate = static_cast<float>(1 - numbers.beta1),
                        .square_keep = static_cast<float>(numbers.beta2),
                        .square_rate = static_cast<float>(1 - numbers.beta2),
                        .step_size = static_cast<float>(numbers.lr / (1 - std::pow(numbers.beta1, steps))),
                        .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(numbers.beta2, steps))),
                        .eps = static_cast<float>(numbers.eps)};
  float* weights = weight.mutable_data_ptr<float>();
  const float* gradients = gradient.const_data_ptr<float>();
  auto* means = static_cast<uint16_t*>(exp_avg.mutable_data_ptr());
  auto* squares = static_cast<uint16_t*>(exp_avg_sq.mutable_data_ptr());
  at::parallel_for(0, weight.numel(), kMomentGrain, [&](int64_t begin, int64_t end) {
    update_loop(weights + begin, gradients + begin, means + begin, squares + begin, end - begin, factors);
  });
}

}  // namespace dalle::optim

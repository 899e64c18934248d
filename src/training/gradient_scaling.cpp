#include "dalle/training/gradient_scaling.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <map>

#include "dalle/core/str.h"

namespace dalle::training {

GradientScaling::GradientScaling(const std::vector<layers::NamedParameter>& parameters,
                                 const std::vector<layers::NamedParameter>& trained, distributed::Communicator& ranks,
                                 const GradientScalingOptions& options)
    : scaling_(parameters, ranks.world_size(), trained), ranks_(ranks), options_(options) {
  const auto indices = optim::resblock_indices(parameters);
  std::map<std::string, int64_t> block_of_name;
  for (size_t i = 0; i < parameters.size(); ++i) block_of_name[parameters[i].name] = indices[i];
  for (const auto& entry : trained) blocks_.push_back(block_of_name.at(entry.name));
  finite_N_ = at::ones_like(scaling_.scales(), at::kBool);
}

layers::BlockRunner& GradientScaling::around(layers::BlockRunner& inner) {
  runner_.emplace([this](int64_t block) { return scaling_.scale(block); }, inner);
  runner_->observe([this](int64_t block, const Tensor& scaled) {
    if (exponents_) exponents_->add(ExponentHistogram::kActivations, block, scaled);
  });
  return *runner_;
}

void GradientScaling::begin_step(bool counts_exponents) {
  taken_.clear();
  exponents_.reset();
  if (!counts_exponents) return;
  exponents_.emplace(scaling_.names(), finite_N_.device());
  counted_log2_N_ = scaling_.log2_scales();
}

void GradientScaling::count_exponents(int64_t block, const Tensor& gradient) {
  if (exponents_ && options_.counts_parameters) exponents_->add(ExponentHistogram::kParameters, block, gradient);
}

Tensor GradientScaling::take(int64_t block) {
  const c10::NoGradGuard no_grad;
  scaling_.for_gradients([&](int64_t of, const Tensor& gradient) {
    if (of == block) count_exponents(block, gradient);
  });
  taken_[block] = scaling_.is_finite(block);
  return scaling_.scale(block);
}

void GradientScaling::unscale() {
  const c10::NoGradGuard no_grad;
  if (taken_.empty()) {
    scaling_.for_gradients([this](int64_t block, const Tensor& gradient) { count_exponents(block, gradient); });
    finite_N_ = scaling_.unscale();
  } else {
    auto finite = at::ones_like(finite_N_).unbind();
    for (const auto& [block, is_finite] : taken_) finite[static_cast<size_t>(block)] = is_finite;
    finite_N_ = at::stack(finite);
  }
  if (ranks_.world_size() > 1) {
    Tensor num_bad_N = finite_N_.logical_not().to(at::kLong);
    ranks_.all_reduce_sum(num_bad_N);
    finite_N_ = num_bad_N.eq(0);
  }
  if (!options_.skips_whole_updates) scaling_.clear(finite_N_);
}

Tensor GradientScaling::without_overflow(const Tensor& norm) const {
  return norm.masked_fill(finite_N_.all().logical_not(), 0);
}

UpdateSkips GradientScaling::finish_update(const Tensor& bad) {
  const c10::NoGradGuard no_grad;
  scaling_.update(finite_N_, bad);
  const Tensor overflows_N = finite_N_.logical_not().to(bad.scalar_type());
  if (options_.skips_whole_updates) return {.all = at::maximum(bad, overflows_N.max()), .each = {}};
  const auto of_block = at::maximum(bad, overflows_N).unbind();
  UpdateSkips skips{.all = bad, .each = {}};
  for (const int64_t block : blocks_) skips.each.push_back(block < 0 ? bad : of_block[static_cast<size_t>(block)]);
  return skips;
}

NamedValues GradientScaling::values() const {
  const Tensor log2_N = scaling_.log2_scales().cpu();
  NamedValues values;
  for (int64_t block = 0; block < scaling_.num_blocks(); ++block) {
    values.emplace_back("gradient_scale_log2/" + scaling_.names()[static_cast<size_t>(block)],
                        log2_N.const_data_ptr<double>()[block]);
  }
  values.emplace_back("overflowed_updates", static_cast<double>(scaling_.num_overflows().item<int64_t>()));
  return values;
}

void GradientScaling::write_exponents(const std::filesystem::path& jsonl, int64_t step, bool writes) {
  if (!exponents_) return;
  exponents_->add_ranks(ranks_);
  if (writes) exponents_->write(jsonl, step, counted_log2_N_);
}

std::string GradientScaling::describe() const {
  const Tensor log2_N = scaling_.log2_scales();
  return str("gradient scaling: ", scaling_.num_blocks(), " resblocks, scales from 2^", log2_N.min().item<double>(),
             " to 2^", log2_N.max().item<double>());
}

}  // namespace dalle::training

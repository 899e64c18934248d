#include "dalle/training/exponent_histogram.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <nlohmann/json.hpp>

#include "dalle/core/files.h"

namespace dalle::training {
namespace {

// floor(log2 |x|) of f32, subnormal numbers included.
constexpr int64_t kFirstExponent = -149, kLastExponent = 127, kNumExponents = kLastExponent - kFirstExponent + 1;
constexpr int64_t kZeros = kNumExponents, kNotFinite = kNumExponents + 1, kNumBins = kNumExponents + 2;
constexpr const char* kKindNames[] = {"activations", "parameters"};

}  // namespace

ExponentHistogram::ExponentHistogram(std::vector<std::string> names, at::Device device) : names_(std::move(names)) {
  counts_ = at::zeros({static_cast<int64_t>(std::size(kKindNames)), static_cast<int64_t>(names_.size()), kNumBins},
                      at::TensorOptions(at::kLong).device(device));
}

void ExponentHistogram::add(Kind kind, int64_t block, const Tensor& gradient) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(gradient.scalar_type() == at::kFloat, "[exponent histogram] expected f32, got ",
                    gradient.scalar_type());
  const Tensor x = gradient.flatten();
  // x = m 2^e with 0.5 <= |m| < 1
  Tensor bins = std::get<1>(at::frexp(x)).to(at::kLong) - 1 - kFirstExponent;
  bins = at::where(x.eq(0), kZeros, bins);
  bins = at::where(x.isfinite(), bins, kNotFinite);
  counts_[kind][block].add_(at::bincount(bins, /*weights=*/{}, kNumBins));
}

void ExponentHistogram::add_ranks(distributed::Communicator& ranks) {
  if (ranks.world_size() > 1) ranks.all_reduce_sum(counts_);
}

void ExponentHistogram::write(const std::filesystem::path& jsonl, int64_t step, const Tensor& log2_scales) const {
  const Tensor counts = counts_.cpu(), scales = log2_scales.cpu();
  for (int64_t block = 0; block < counts.size(1); ++block) {
    for (int64_t kind = 0; kind < counts.size(0); ++kind) {
      const Tensor row = counts[kind][block].contiguous();
      const int64_t* values = row.const_data_ptr<int64_t>();
      int64_t first = 0, end = kNumExponents;
      while (first < end && values[first] == 0) ++first;
      while (end > first && values[end - 1] == 0) --end;
      const nlohmann::ordered_json line{{"step", step},
                                        {"block", names_[static_cast<size_t>(block)]},
                                        {"gradients", kKindNames[kind]},
                                        {"scale_log2", scales[block].item<double>()},
                                        {"zeros", values[kZeros]},
                                        {"not_finite", values[kNotFinite]},
                                        {"first_exponent", first < end ? first + kFirstExponent : 0},
                                        {"counts", std::vector<int64_t>(values + first, values + end)}};
      append_line(jsonl, line.dump());
    }
  }
}

}  // namespace dalle::training

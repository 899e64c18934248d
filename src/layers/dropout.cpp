#include "dalle/layers/dropout.h"

#include <ATen/ATen.h>

#include "dalle/core/random.h"

namespace dalle::layers {

Tensor Dropout::apply(const Tensor& x, int64_t place) const {
  if (rate <= 0) return x;
  TORCH_CHECK_VALUE(rate < 1 && x.size(0) == static_cast<int64_t>(positions.size()),
                    "[dropout] expected a rate below 1 and a position for each of ", x.size(0), " samples, got rate ",
                    rate, " and ", positions.size(), " positions");
  std::vector<RandomKey> keys;
  for (const int64_t position : positions) {
    keys.push_back(random_key(seed, Purpose::kDropout, static_cast<uint64_t>(position), static_cast<uint64_t>(place)));
  }
  const Tensor dropped = uniform_rows(keys, x.numel() / x.size(0), x.device()).lt_(rate).to(at::kBool);
  return x.masked_fill(dropped.view(x.sizes()), 0) * (1 / (1 - rate));
}

}  // namespace dalle::layers

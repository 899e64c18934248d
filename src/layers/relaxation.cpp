#include "dalle/layers/relaxation.h"

#include <ATen/ATen.h>

#include <cmath>

namespace dalle::layers {

Tensor gumbel_softmax(const Tensor& logits_BVHW, const Tensor& gumbel_BVHW, double temperature) {
  return at::softmax((logits_BVHW + gumbel_BVHW) / temperature, 1);
}

Tensor kl_to_uniform(const Tensor& logits_BVHW) {
  const Tensor log_q = at::log_softmax(logits_BVHW, 1);
  const double log_vocab = std::log(static_cast<double>(logits_BVHW.size(1)));
  return (log_q.exp() * log_q).sum(1) + log_vocab;
}

Tensor argmax_codes(const Tensor& logits_BVHW) { return logits_BVHW.argmax(1); }

Tensor one_hot_codes(const Tensor& codes_BHW, int64_t vocab_size) {
  Tensor out = at::zeros({codes_BHW.size(0), vocab_size, codes_BHW.size(1), codes_BHW.size(2)},
                         codes_BHW.options().dtype(at::kFloat).memory_format(at::MemoryFormat::ChannelsLast));
  return out.scatter_(1, codes_BHW.unsqueeze(1), 1.0);
}

}  // namespace dalle::layers

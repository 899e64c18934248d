#include "dalle/layers/inference_rows.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::layers {
namespace {

TEST(InferenceRows, LayerNormIsATensRoundedToBf16) {
  at::manual_seed(0);
  for (const int64_t dim : {16, 64, 768}) {
    const Tensor x = at::randn({70, dim}) * 5 + 100, gain = at::randn({dim}), bias = at::randn({dim});
    Tensor out = at::empty({70, dim}, at::kBFloat16);
    detail::layer_norm_rows(x.const_data_ptr<float>(), 70, dim, gain.const_data_ptr<float>(),
                            bias.const_data_ptr<float>(), 1e-5f, static_cast<uint16_t*>(out.mutable_data_ptr()));
    const Tensor exact = at::layer_norm(x.to(at::kDouble), {dim}, gain.to(at::kDouble), bias.to(at::kDouble), 1e-5);
    const Tensor error = (out.to(at::kDouble) - exact).abs() / (exact.abs() + 0.05);
    EXPECT_LE(error.max().item<double>(), 1.0 / 250) << dim;
  }
}

TEST(InferenceRows, OneQuerysAttentionIsTheFormula) {
  at::manual_seed(0);
  for (const auto& [length, head_dim] : {std::pair(1, 64), std::pair(50, 64), std::pair(21, 20)}) {
    const Tensor q = at::randn({head_dim}).mul(3).to(at::kBFloat16);
    const Tensor kv = at::randn({length, 2, head_dim}).to(at::kBFloat16);  // keys and values side by side
    Tensor out = at::empty({head_dim}, at::kBFloat16);
    std::vector<float> scores(static_cast<size_t>(length));
    const auto* rows = static_cast<const uint16_t*>(kv.const_data_ptr());
    detail::attend_row(static_cast<const uint16_t*>(q.const_data_ptr()), rows, rows + head_dim, 2 * head_dim, length,
                       head_dim, scores.data(), static_cast<uint16_t*>(out.mutable_data_ptr()));
    const Tensor exact = kv.to(at::kDouble), keys = exact.select(1, 0), values = exact.select(1, 1);
    const Tensor weights = (at::mv(keys, q.to(at::kDouble)) / std::sqrt(head_dim)).softmax(0);
    const Tensor expected = at::mv(values.t(), weights);
    const Tensor error = (out.to(at::kDouble) - expected).abs() / (expected.abs() + 0.01);
    EXPECT_LE(error.max().item<double>(), 1.0 / 250) << length;
  }
}

}  // namespace
}  // namespace dalle::layers

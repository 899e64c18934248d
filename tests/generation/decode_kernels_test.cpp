// Loops over a row against the formulas in f64, for tails of every kind.
#include "dalle/generation/decode_kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::generation::detail {
namespace {

using testing::close_to;
using testing::random_tensor;

TEST(DecodeKernels, GeluIsTheFormula) {
  Tensor x = at::cat({at::linspace(-12, 12, 100'003), at::tensor({0.0f, -0.0f, 1e30f, -1e30f, 1e-30f})});
  const Tensor exact = x.to(at::kDouble) * 0.5 * at::special_erfc(x.to(at::kDouble) * -std::sqrt(0.5));
  const Tensor size = x.abs().clamp_min(1), is_negative = x.lt(0);
  gelu(x.numel(), x.mutable_data_ptr<float>());
  const Tensor error = (x.to(at::kDouble) - exact).abs();
  EXPECT_LT((error / size).max().item<double>(), 3e-7);
  EXPECT_LT(error.index({is_negative}).max().item<double>(), 1e-6);
  Tensor nan = at::full({3}, NAN);
  gelu(3, nan.mutable_data_ptr<float>());
  EXPECT_TRUE(nan.isnan().all().item<bool>());
}

TEST(DecodeKernels, ANumberDoesNotDependOnItsPlace) {
  const Tensor x = random_tensor(1, {101}) * 3;
  Tensor together = x.clone();
  gelu(101, together.mutable_data_ptr<float>());
  for (int64_t i = 0; i < 101; ++i) {
    Tensor alone = x.slice(0, i, i + 1).clone();
    gelu(1, alone.mutable_data_ptr<float>());
    EXPECT_EQ(alone.item<float>(), together[i].item<float>()) << i;
  }
}

TEST(DecodeKernels, LayerNormIsTheFormula) {
  for (const int64_t size : {1, 5, 16, 24, 120, 256}) {
    const Tensor x = random_tensor(1, {size}) * 5 + 2, w = random_tensor(2, {size}), b = random_tensor(3, {size});
    const Tensor out = at::empty({size});
    layer_norm(x.const_data_ptr<float>(), size, w.const_data_ptr<float>(), b.const_data_ptr<float>(), 1e-5f,
               out.mutable_data_ptr<float>());
    const Tensor expected = at::layer_norm(x.to(at::kDouble), {size}, w.to(at::kDouble), b.to(at::kDouble), 1e-5);
    EXPECT_TRUE(close_to(out, expected, 1e-5)) << size;
  }
}

}  // namespace
}  // namespace dalle::generation::detail

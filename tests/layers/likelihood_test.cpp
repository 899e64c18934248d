// Logit-Laplace: the paper's golden values, that it is a density, its derivatives, and PyTorch's values.
#include "dalle/layers/likelihood.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/golden.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;

double log_density(double x, double mu, double log_b) {
  const auto scalar = [](double value) { return at::full({1}, value, at::kDouble); };
  return -logit_laplace_nll(scalar(x), scalar(mu), scalar(log_b)).item<double>();
}

TEST(Likelihood, GoldenValues) {
  EXPECT_NEAR(log_density(0.5, 0, 0), 0.693147, 1e-6);              // ln 2: the nll is negative
  EXPECT_NEAR(log_density(0.9, std::log(9.0), 0), 1.714798, 1e-6);  // -ln 2 - ln 0.09
  EXPECT_NEAR(log_density(0.9, std::log(9.0), std::log(2.0)), 1.714798 - std::log(2.0), 1e-6);
  EXPECT_NEAR(log_density(0.5, 3, std::log(2.0)), 0.693147 - std::log(2.0) - 1.5, 1e-6);
}

TEST(Likelihood, IntegratesToOne) {
  // Trapezoid over y = logit x, where dx = x (1 - x) dy and the tails fall as exp(-|y - mu| / b).
  for (const double mu : {-2.0, 0.0, 0.7, 3.0}) {
    for (const double b : {0.1, 0.5, 1.0}) {
      const Tensor y = at::linspace(mu - 25 * b, mu + 25 * b, 50'001, at::kDouble);  // mu is a node: the kink is there
      const Tensor x = at::sigmoid(y);
      const Tensor log_b = at::full_like(y, std::log(b));
      const Tensor integrand = at::exp(-logit_laplace_nll(x, at::full_like(y, mu), log_b)) * x * at::sigmoid(-y);
      EXPECT_NEAR(at::trapezoid(integrand, y).item<double>(), 1, 1e-5) << "mu " << mu << " b " << b;
    }
  }
}

TEST(Likelihood, IntegratesToOneOverPixelsToo) {
  // Midpoints over x itself: nothing of the density is left out between 0 and 1.
  const int64_t n = 1'000'000;
  const Tensor x = (at::arange(n, at::kDouble) + 0.5) / static_cast<double>(n);
  for (const double mu : {-1.0, 0.4}) {
    const Tensor nll = logit_laplace_nll(x, at::full_like(x, mu), at::full_like(x, std::log(0.3)));
    EXPECT_NEAR(at::exp(-nll).mean().item<double>(), 1, 1e-4) << mu;
  }
}

TEST(Likelihood, DerivativeInLogScale) {
  // d ln f / d ln b = -1 + |logit x - mu| / b
  const Tensor x = at::tensor({0.2, 0.5, 0.9}, at::kDouble), mu = at::tensor({0.3, -1.0, 2.0}, at::kDouble);
  const Tensor log_b = at::tensor({-0.5, 0.0, 0.8}, at::kDouble).requires_grad_();
  logit_laplace_nll(x, mu, log_b).sum().backward();
  const Tensor expected = -(-1 + (at::logit(x) - mu).abs() / at::exp(log_b.detach()));
  EXPECT_TRUE(close_to(log_b.grad(), expected, 1e-12));
}

TEST(Likelihood, ValuesAndGradientsMatchPyTorch) {
  const testing::Golden golden("dvae_loss.safetensors");
  const Tensor mu = golden.at("mu").clone().requires_grad_(), log_b = golden.at("log_b").clone().requires_grad_();
  const Tensor nll = logit_laplace_nll(golden.at("x"), mu, log_b);
  EXPECT_EQ(nll.scalar_type(), at::kFloat);
  EXPECT_TRUE(close_to(nll, golden.at("nll"), 1e-5));
  nll.sum().backward();
  EXPECT_TRUE(close_to(mu.grad(), golden.at("grad.nll.mu"), 1e-5));
  EXPECT_TRUE(close_to(log_b.grad(), golden.at("grad.nll.log_b"), 1e-5));
}

TEST(Likelihood, MapsPixelsAndBack) {
  const Tensor ends = map_pixels(at::tensor({0.0, 1.0}, at::kDouble));
  EXPECT_NEAR(ends[0].item<double>(), 0.1, 1e-12);
  EXPECT_NEAR(ends[1].item<double>(), 0.9, 1e-12);
  EXPECT_NEAR(at::logit(ends)[1].item<double>(), 2.197225, 1e-6);
  EXPECT_NEAR(at::logit(ends)[0].item<double>(), -2.197225, 1e-6);
  const Tensor x = at::linspace(0, 1, 256);
  EXPECT_TRUE(close_to(unmap_pixels(map_pixels(x)), x, 1e-6));
  EXPECT_TRUE(at::equal(unmap_pixels(at::tensor({0.0, 0.05, 0.95, 1.0})), at::tensor({0.0f, 0.0f, 1.0f, 1.0f})));
}

TEST(Likelihood, ReconstructionIgnoresTheScales) {
  at::manual_seed(0);
  Tensor stats = at::randn({2, 6, 3, 3});
  const Tensor picture = reconstruction_from_stats(stats);
  ASSERT_EQ(picture.sizes(), (std::vector<int64_t>{2, 3, 3, 3}));
  EXPECT_TRUE(close_to(picture, ((at::sigmoid(stats.slice(1, 0, 3)) - 0.1) / 0.8).clamp(0, 1), 1e-6));
  stats.slice(1, 3).fill_(100);
  EXPECT_TRUE(at::equal(reconstruction_from_stats(stats), picture));
}

}  // namespace
}  // namespace dalle::layers

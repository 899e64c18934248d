// Logit-Laplace: the paper's golden values, that it is a density, its derivatives, and PyTorch's values. Laplace and Gauss:
// their formulas, that they are densities, and their gradients.
#include "dalle/layers/likelihood.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/finite_difference.h"
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

// ----------------------------------------------------------------------------------------------- Laplace and Gaussian

Tensor one(double value) { return at::full({1}, value, at::kDouble); }

TEST(Likelihood, GoldenValuesOfTheOthers) {
  EXPECT_NEAR(laplace_nll(one(0.3), one(0.3), one(0)).item<double>(), std::log(2.0), 1e-12);
  EXPECT_NEAR(laplace_nll(one(0.9), one(0.4), one(std::log(0.25))).item<double>(), std::log(0.5) + 2, 1e-12);
  EXPECT_NEAR(gaussian_nll(one(0.3), one(0.3), one(0)).item<double>(), 0.918938533, 1e-9);  // ln(2 pi) / 2
  EXPECT_NEAR(gaussian_nll(one(0.9), one(0.4), one(std::log(0.25))).item<double>(), 0.918938533 + std::log(0.25) + 2,
              1e-9);
}

TEST(Likelihood, TheOthersIntegrateToOne) {
  for (const auto& nll : {laplace_nll, gaussian_nll}) {
    for (const double mu : {-0.3, 0.5, 1.2}) {
      for (const double b : {0.01, 0.2, 1.0}) {
        const Tensor x = at::linspace(mu - 40 * b, mu + 40 * b, 80'001, at::kDouble);
        const Tensor density = at::exp(-nll(x, at::full_like(x, mu), at::full_like(x, std::log(b))));
        EXPECT_NEAR(at::trapezoid(density, x).item<double>(), 1, 1e-6) << "mu " << mu << " b " << b;
      }
    }
  }
}

TEST(Likelihood, GradientsOfAllAreTheirDifferences) {
  // mu and ln b side by side in one tensor, away from the kink at mu = x.
  const Tensor x = at::tensor({0.15, 0.5, 0.8, 0.35}, at::kDouble);
  const Tensor stats = at::tensor({0.9, -0.6, 0.1, 1.4, -1.0, 0.2, -0.4, 0.5}, at::kDouble);
  for (const auto& nll : {logit_laplace_nll, laplace_nll, gaussian_nll}) {
    EXPECT_TRUE(testing::gradient_is_right(
        [&](const Tensor& s) { return nll(x, s.slice(0, 0, 4), s.slice(0, 4, 8)).sum(); }, stats));
  }
}

TEST(Likelihood, OfADecodersOutputIsTheChosenDensity) {
  at::manual_seed(0);
  const Tensor pixels = at::rand({2, 3, 4, 4}), stats = at::randn({2, 6, 4, 4});
  const Tensor mu = stats.slice(1, 0, 3), log_b = stats.slice(1, 3, 6);
  EXPECT_TRUE(
      at::equal(pixel_nll(Likelihood::kLogitLaplace, pixels, stats), logit_laplace_nll(map_pixels(pixels), mu, log_b)));
  EXPECT_TRUE(at::equal(pixel_nll(Likelihood::kLaplace, pixels, stats), laplace_nll(pixels, mu, log_b)));
  EXPECT_TRUE(at::equal(pixel_nll(Likelihood::kGaussian, pixels, stats), gaussian_nll(pixels, mu, log_b)));
  EXPECT_TRUE(
      at::equal(pixel_nll(Likelihood::kGaussian, pixels, stats, 0.5), gaussian_nll(pixels, mu, log_b.clamp_min(0.5))));
}

// The change of variables that makes the paper's nats comparable with the others': both are densities over x.
TEST(Likelihood, TheLogitLaplaceOverPixelsNeedsTheMapsJacobian) {
  // Over all of phi's range the mass is what the density has between phi(0) and phi(1): below 1, and 1 for a narrow one.
  const int64_t n = 200'000;
  const Tensor x = (at::arange(n, at::kDouble) + 0.5) / static_cast<double>(n);
  const Tensor stats = at::zeros({1, 6, 1, n}, at::kDouble);
  stats.slice(1, 3, 6).fill_(std::log(0.05));
  const Tensor nll = pixel_nll(Likelihood::kLogitLaplace, x.view({1, 1, 1, n}).expand({1, 3, 1, n}), stats);
  const double to_pixels = -std::log(1 - 2 * kLogitLaplaceEps);
  EXPECT_NEAR(to_pixels, 0.2231, 1e-4);
  EXPECT_NEAR(at::exp(-(nll + to_pixels)).mean().item<double>(), 1, 1e-4);
}

TEST(Likelihood, EachShowsItsOwnPicture) {
  at::manual_seed(0);
  const Tensor stats = at::randn({2, 6, 3, 3}) * 2;
  for (const auto likelihood : {Likelihood::kLaplace, Likelihood::kGaussian}) {
    EXPECT_TRUE(at::equal(reconstruction_from_stats(stats, likelihood), stats.slice(1, 0, 3).clamp(0, 1)));
  }
}

}  // namespace
}  // namespace dalle::layers

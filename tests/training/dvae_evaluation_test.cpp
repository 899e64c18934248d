// Validation of a dVAE: each bound against its formula over the whole held-out set.
#include "dalle/training/dvae_evaluation.h"

#include <c10/core/GradMode.h>

#include <cmath>
#include <map>
#include <set>

#include "dalle/training/task_support.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

std::map<std::string, double> by_name(const Metrics& metrics) { return {metrics.begin(), metrics.end()}; }

struct Fixture {
  explicit Fixture(DvaeTraining given)
      : config(std::move(given)), model(config.model), data(config.validation.sources) {
    model.materialize(at::kCPU);
    model.initialize(11);
    const c10::NoGradGuard no_grad;
    for (const auto& [name, parameter] : model.named_parameters()) parameter->tensor.mul_(2);
  }
  Tensor pixels() const {
    const auto batch = data::load_range(data, config.data, 16, 0, config.validation.max_samples);
    return to_unit_range(batch.images, at::kCPU);
  }
  std::map<std::string, double> evaluate(double temperature) const {
    return by_name(evaluate_dvae(model, config, data, temperature, *distributed::make_singleton()));
  }
  DvaeTraining config;
  models::Dvae model;
  data::Dataset data;
};

/// Mean of -ln p over the sub-pixels of all held-out pictures, for given codes.
double mean_nll(const Fixture& fixture, const Tensor& codes_BHW) {
  const Tensor stats = fixture.model.decode_stats(fixture.model.decoder_input(codes_BHW));
  return layers::pixel_nll(fixture.config.model.likelihood, fixture.pixels(), stats)
      .to(at::kDouble)
      .mean()
      .item<double>();
}

TEST(DvaeEvaluation, TheArgmaxBoundIsThatOfACertainCode) {
  const c10::NoGradGuard no_grad;
  const Fixture fixture(tiny_dvae());
  auto metrics = fixture.evaluate(0.5);
  const double nll = mean_nll(fixture, fixture.model.encode(fixture.pixels()));
  EXPECT_NEAR(metrics.at("nll_argmax"), nll, 1e-6 * std::abs(nll));
  // 16 positions of ln 16 nats over 3 * 16 * 16 sub-pixels.
  EXPECT_NEAR(metrics.at("elb_argmax"), nll + 16 * std::log(16.0) / 768, 1e-6 * std::abs(nll));
}

TEST(DvaeEvaluation, TheBoundsAddTheKlOfAPictureOnce) {
  const c10::NoGradGuard no_grad;
  auto config = tiny_dvae();
  config.relaxation.kl_weight_end = 1000;  // training's weight has no part in a bound
  const Fixture fixture(config);
  auto metrics = fixture.evaluate(0.5);
  const Tensor q = at::softmax(fixture.model.encode_logits(fixture.pixels()), 1).to(at::kDouble);
  const double kl_of_pictures = (q * (q.log() + std::log(16.0))).sum().item<double>() / 8;
  EXPECT_NEAR(metrics.at("kl"), kl_of_pictures / 16, 1e-5 * kl_of_pictures);
  EXPECT_GT(kl_of_pictures, 0.1);
  EXPECT_NEAR(metrics.at("elb_relaxed"), metrics.at("nll_relaxed") + kl_of_pictures / 768, 1e-6);
  EXPECT_NEAR(metrics.at("elb_hard"), metrics.at("nll_hard") + kl_of_pictures / 768, 1e-6);
  EXPECT_NEAR(metrics.at("elb_gap"), metrics.at("elb_hard") - metrics.at("elb_relaxed"), 1e-9);
}

TEST(DvaeEvaluation, DeadCodesAreThoseThatNoPictureUses) {
  const c10::NoGradGuard no_grad;
  const Fixture fixture(tiny_dvae());
  auto metrics = fixture.evaluate(1);
  const Tensor codes = fixture.model.encode(fixture.pixels()).flatten().contiguous();
  const std::set<int64_t> used(codes.data_ptr<int64_t>(), codes.data_ptr<int64_t>() + codes.size(0));
  EXPECT_EQ(metrics.at("dead_codes"), 16 - static_cast<double>(used.size()));
  EXPECT_EQ(metrics.at("codes_used"), static_cast<double>(used.size()) / 16);
  EXPECT_GT(used.size(), 1U);
}

TEST(DvaeEvaluation, ACodebooksCodeIsAlwaysCertain) {
  const c10::NoGradGuard no_grad;
  const Fixture fixture(tiny_vq());
  auto metrics = fixture.evaluate(0.3);
  const double nll = mean_nll(fixture, fixture.model.encode(fixture.pixels()));
  for (const char* name : {"nll_relaxed", "nll_hard", "nll_argmax"})
    EXPECT_NEAR(metrics.at(name), nll, 1e-6 * nll) << name;
  for (const char* name : {"elb_relaxed", "elb_hard", "elb_argmax"})
    EXPECT_NEAR(metrics.at(name), nll + 16 * std::log(16.0) / 768, 1e-6 * nll) << name;
  EXPECT_NEAR(metrics.at("kl"), std::log(16.0), 1e-9);
  EXPECT_EQ(metrics.at("elb_gap"), 0);
  EXPECT_FALSE(metrics.contains("temperature"));
}

TEST(DvaeEvaluation, EachLikelihoodIsMeasuredByItsOwnDensity) {
  const c10::NoGradGuard no_grad;
  std::set<double> values;
  for (const auto likelihood :
       {layers::Likelihood::kLogitLaplace, layers::Likelihood::kLaplace, layers::Likelihood::kGaussian}) {
    auto config = tiny_dvae();
    config.model.likelihood = likelihood;
    const Fixture fixture(config);
    const double nll = mean_nll(fixture, fixture.model.encode(fixture.pixels()));
    EXPECT_NEAR(fixture.evaluate(0.5).at("nll_argmax"), nll, 1e-6 * std::abs(nll));
    values.insert(nll);
  }
  EXPECT_EQ(values.size(), 3U);
}

TEST(DvaeEvaluation, TheSheetShowsEachKindOfCode) {
  const Fixture gumbel(tiny_dvae()), vq(tiny_vq());
  const auto height = [](const Fixture& fixture) {
    const Sheet sheet = reconstruction_sheet(fixture.model, fixture.config, fixture.data, 0.5, "title");
    EXPECT_EQ(sheet.name, "reconstructions");
    EXPECT_GT(sheet.picture.to(at::kFloat).std().item<double>(), 5) << "not blank";
    return sheet.picture.size(0);
  };
  // Four rows of pictures against two.
  EXPECT_GT(height(gumbel), height(vq) + 2 * 100);
}

}  // namespace
}  // namespace dalle::training

#include "dalle/training/gradient_scaling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dalle/core/device.h"
#include "dalle/distributed/agreement.h"
#include "support/rank_processes.h"
#include "support/thread_ranks.h"
#include "training/fp16_runs.h"

namespace dalle::training {
namespace {

/// Two layers of two blocks, each with one weight, and a head; gradients are set by hand.
struct Blocks : layers::Module {
  Blocks() {
    materialize(at::kCPU);
    initialize(3);
    set_requires_grad(true);
    for (const auto& [name, parameter] : named_parameters()) {
      parameter->tensor.mutable_grad() = at::full_like(parameter->tensor.detach(), 1024.0);
    }
  }
  std::vector<layers::Parameter*> weights{&add_parameter("resblocks.0.attn.w", {4}, layers::Init::ones()),
                                          &add_parameter("resblocks.0.mlp.w", {4}, layers::Init::ones()),
                                          &add_parameter("resblocks.1.attn.w", {4}, layers::Init::ones()),
                                          &add_parameter("resblocks.1.mlp.w", {4}, layers::Init::ones())};
  layers::Parameter& head = add_parameter("head.weight", {4}, layers::Init::ones());
};

TEST(GradientScaling, AnOverflowOnOneRankIsKnownToAll) {
  for (const bool whole : {false, true}) {
    testing::run_thread_ranks(2, [&](testing::ThreadRank& rank) {
      Blocks model;
      if (rank.rank() == 1) model.weights[2]->tensor.mutable_grad()[1] = INFINITY;
      const auto parameters = model.named_parameters();
      GradientScaling scaling(parameters, parameters, rank, {.skips_whole_updates = whole});
      scaling.unscale();
      EXPECT_TRUE(at::equal(model.weights[0]->tensor.grad(), at::full({4}, 1024 / (2 * 8192.0f))));
      EXPECT_TRUE(at::equal(model.head.tensor.grad(), at::full({4}, 1024.0f)));
      const float expected = whole ? 1024 / (2 * 8192.0f) : 0;
      EXPECT_EQ(model.weights[2]->tensor.grad()[0].item<float>(), expected);
      const UpdateSkips skips = scaling.finish_update(at::zeros({}));
      EXPECT_EQ(skips.all.item<float>(), whole ? 1 : 0);
      ASSERT_EQ(skips.each.size(), whole ? 0U : 5U);
      for (size_t i = 0; i < skips.each.size(); ++i) {
        EXPECT_EQ(skips.each[i].item<float>(), parameters[i].name == "resblocks.1.attn.w" ? 1 : 0);
      }
      const auto values = scaling.values();
      EXPECT_EQ(values[2], (std::pair<std::string, double>("gradient_scale_log2/resblocks.1.attn", 1 + 12.5)));
      EXPECT_EQ(values[3].second, 1 + 13.001);
      EXPECT_EQ(values.back(), (std::pair<std::string, double>("overflowed_updates", 1)));
    });
  }
}

/// For what divides gradients itself.
TEST(GradientScaling, ABlockThatIsTakenIsJudgedAndLeftAsItIs) {
  testing::run_thread_ranks(2, [&](testing::ThreadRank& rank) {
    Blocks model;
    const auto parameters = model.named_parameters();
    GradientScaling scaling(parameters, parameters, rank, {.skips_whole_updates = true});
    for (const bool overflows : {false, true}) {
      if (overflows && rank.rank() == 1) model.weights[2]->tensor.mutable_grad()[1] = INFINITY;
      scaling.begin_step(false);
      for (int64_t block = 3; block >= 0; --block) {
        const auto step = overflows ? 1.0 : 0.0;
        EXPECT_EQ(scaling.take(block).item<float>(), 2 * static_cast<float>(std::exp2(13 + step / 1000)));
      }
      scaling.unscale();
      EXPECT_TRUE(at::equal(model.weights[0]->tensor.grad(), at::full({4}, 1024.0f)));
      EXPECT_EQ(scaling.finish_update(at::zeros({})).all.item<float>(), overflows ? 1 : 0);
    }
    EXPECT_EQ(scaling.values()[2].second, 1 + 12.501);
    EXPECT_EQ(scaling.values()[3].second, 1 + 13.002);
  });
}

TEST(GradientScaling, AnUpdateThatIsSkippedForOtherReasonsMovesNothing) {
  const auto alone = distributed::make_singleton();
  Blocks model;
  model.weights[0]->tensor.mutable_grad()[0] = NAN;
  const auto parameters = model.named_parameters();
  GradientScaling scaling(parameters, parameters, *alone);
  const auto before = scaling.state();
  scaling.unscale();
  const UpdateSkips skips = scaling.finish_update(at::ones({}));
  EXPECT_EQ(skips.all.item<float>(), 1);
  for (const Tensor& skip : skips.each) EXPECT_EQ(skip.item<float>(), 1);
  expect_same_tensors(scaling.state(), before);
}

// --------------------------------------------------------------------------------------------------------- more ranks

void train_on(distributed::Communicator& ranks, const PriorTraining& config, const fs::path& root, bool resume) {
  PriorTask task(config, at::kCPU);
  Trainer trainer(setup_of(config, resume), task, ranks);
  if (ranks.rank() > 0) {
    RunDirectory run = RunDirectory::of_first_rank(root);
    trainer.run(run);
    return;
  }
  RunDirectory run = resume ? RunDirectory::open(root) : RunDirectory::create(root, "");
  trainer.run(run);
}

/// Sharded and not, stopped and resumed: the losses are those of one process, the checkpoints each other's bits.
TEST(Fp16Worker, DISABLED_TrainsOnTwoRanks) {
  set_console_level(LogLevel::kError);
  set_num_threads(1);
  const auto group = distributed::init(testing::rank_device(), std::chrono::seconds(60));
  const bool is_first = group->rank() == 0;
  const testing::TempDirectory scratch("fp16-ranks");  // rank 0's is used
  const fs::path root = distributed::on_first_rank(*group, [&] { return (scratch / "").string(); });
  const auto config_of = [](Sharding sharding, int64_t num_steps) {
    auto config = prior_in(Precision::kFp16, num_steps);
    config.trainer.sharding = sharding;
    config.trainer.shard_group_size = 1;  // of hybrid: two replicas
    config.trainer.micro_batch_size = 1;
    // Some gradients are zero but for rounding (biases of keys): with the default of 1e-8 AdamW moves such weights by a whole
    // learning rate, this way or that, and losses drift apart by 3e-5.
    config.optimizer.eps = 1e-5;
    return config;
  };
  constexpr int64_t kSteps = 12;
  if (is_first) train(config_of(Sharding::kNone, kSteps), root / "alone");
  for (const Sharding sharding : {Sharding::kNone, Sharding::kFull, Sharding::kOptimizer, Sharding::kHybrid}) {
    const std::string name(enum_name(sharding));
    train_on(*group, config_of(sharding, kSteps), root / name, false);
    train_on(*group, config_of(sharding, kSteps / 2), root / (name + "-stopped"), false);
    train_on(*group, config_of(sharding, kSteps), root / (name + "-stopped"), true);
    if (!is_first) continue;
    const auto alone = train_values(root / "alone", "loss");
    EXPECT_LT(largest_relative_difference(train_values(root / name, "loss"), alone), 1e-5) << name;
    const auto straight = latest(root / name), stopped = latest(root / (name + "-stopped"));
    EXPECT_EQ(straight.step, kSteps);
    expect_same_tensors(stopped.model, straight.model);
    expect_same_tensors(stopped.optimizer, straight.optimizer);
    EXPECT_TRUE(at::equal(optimizer_tensor(straight, "resblock_scaling.log2"), at::full({8}, 13'012, at::kLong)));
    EXPECT_EQ(metrics_of(root / name, "train").back()["gradient_scale_log2/transformer.resblocks.0.attn"], 14.012);
  }
  group->barrier();
}

/// The parts of a group of one rank are whole blocks, so that hybrid compresses the same matrices.
TEST(Fp16Worker, DISABLED_TrainsCompressedOnTwoRanks) {
  set_console_level(LogLevel::kError);
  set_num_threads(1);
  const auto group = distributed::init(testing::rank_device(), std::chrono::seconds(60));
  const testing::TempDirectory scratch("fp16-compressed-ranks");  // rank 0's is used
  const fs::path root = distributed::on_first_rank(*group, [&] { return (scratch / "").string(); });
  auto config = prior_in(Precision::kFp16, 6);
  config.trainer.gradient_compression.enabled = true;
  config.trainer.gradient_compression.rank = 2;
  config.trainer.shard_group_size = 1;
  config.trainer.micro_batch_size = 1;
  if (group->rank() == 0) train(config, root / "alone");
  for (const Sharding sharding : {Sharding::kNone, Sharding::kHybrid}) {
    config.trainer.sharding = sharding;
    const std::string name(enum_name(sharding));
    train_on(*group, config, root / name, false);
    if (group->rank() > 0) continue;
    // fp16 rounds what each rank sums of its own samples.
    const auto losses = train_values(root / name, "loss");
    EXPECT_LT(largest_relative_difference(losses, train_values(root / "alone", "loss")), 5e-4) << name;
    EXPECT_LT(largest_relative_difference(losses, train_values(root / "none", "loss")), 1e-6) << name;
    EXPECT_TRUE(
        at::equal(optimizer_tensor(latest(root / name), "resblock_scaling.log2"), at::full({8}, 13'006, at::kLong)));
  }
  group->barrier();
}

TEST(Fp16, TwoRanksTrainAsOneWithCompressedGradients) {
  testing::run_ranks(2, "Fp16Worker.DISABLED_TrainsCompressedOnTwoRanks");
}

TEST(Fp16, TwoRanksTrainAsOneSplitOrNot) { testing::run_ranks(2, "Fp16Worker.DISABLED_TrainsOnTwoRanks"); }

}  // namespace
}  // namespace dalle::training

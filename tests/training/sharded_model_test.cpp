#include "dalle/training/sharded_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>

#include <array>
#include <set>

#include "dalle/layers/checkpoint_runner.h"
#include "dalle/models/dvae.h"
#include "dalle/models/load.h"
#include "dalle/models/prior.h"
#include "dalle/optim/adamw.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/training/plan.h"
#include "support/runners.h"
#include "support/thread_ranks.h"

namespace dalle::training {
namespace {

using testing::run_thread_ranks;
using testing::ThreadRank;

models::PriorConfig tiny_config(int64_t num_layers = 3) {
  return {.text_context = 8,
          .text_vocab_size = 16,
          .grid_size = 4,
          .image_vocab_size = 16,
          .dim = 16,
          .num_heads = 2,
          .num_layers = num_layers};
}

/// A loss of the prior on tokens that are a function of the rank, or of all ranks' tokens.
Tensor loss_of(const models::Prior& prior, int64_t rank, layers::BlockRunner& runner) {
  const auto& config = prior.config();
  const Tensor caption = (at::arange(config.max_caption_tokens(), at::kLong) + rank).remainder(16).unsqueeze(0);
  const Tensor image = (at::arange(config.image_context(), at::kLong) * 3 + rank).remainder(16).unsqueeze(0);
  const auto loss = prior.loss(caption, image, {}, runner);
  return loss.text + loss.image;
}

TEST(BlockIndices, AreThoseOfTheRunner) {
  const auto expect_runner_indices = [](const layers::Module& module, const std::vector<int64_t>& seen) {
    const auto indices = block_indices(module.named_parameters());
    std::set<int64_t> named(indices.begin(), indices.end());
    named.erase(-1);
    EXPECT_EQ(std::vector<int64_t>(named.begin(), named.end()), seen);
  };
  const models::Prior prior(tiny_config());
  testing::RecordingRunner runner;
  models::Prior real(tiny_config());
  real.materialize(at::kCPU);
  real.initialize(0);
  loss_of(real, 0, runner);
  expect_runner_indices(prior, runner.indices);

  models::Dvae dvae(models::DvaeConfig{.image_size = 16, .vocab_size = 8, .hidden_dim = 8});
  dvae.materialize(at::kCPU);
  dvae.initialize(0);
  testing::RecordingRunner of_dvae;
  const Tensor logits = dvae.encode_logits(at::rand({1, 3, 16, 16}), of_dvae);
  dvae.decode_stats(logits.softmax(1), of_dvae);
  expect_runner_indices(dvae, of_dvae.indices);
}

/// Blocks whose whole weights are in memory whenever one runs, forward or again.
struct WatchingRunner : layers::BlockRunner {
  explicit WatchingRunner(const models::Prior& prior) {
    const auto parameters = prior.named_parameters();
    const auto indices = block_indices(parameters);
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (indices[i] >= 0) block_tensors[indices[i]] = parameters[i].parameter->tensor;
    }
  }
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override {
    return checkpoint.run(index, input, [this, function](const Tensor& x) {
      size_t count = 0;
      for (const auto& [block, tensor] : block_tensors) count += tensor.storage().nbytes() > 0;
      most = std::max(most, count);
      ++calls;
      return function(x);
    });
  }
  layers::CheckpointRunner checkpoint;
  std::map<int64_t, Tensor> block_tensors;
  size_t most = 0;
  int64_t calls = 0;
};

TEST(ShardedModel, HoldsABlockAndTheNextAtMost) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    models::Prior prior(tiny_config(5));
    ShardedModel sharded(prior, at::kCPU, 1, Sharding::kFull, 2, rank);
    WatchingRunner watching(prior);
    sharded.set_inner(watching);
    for (int step = 0; step < 2; ++step) {
      sharded.begin_step();
      const Tensor loss = loss_of(prior, rank.rank(), sharded);
      sharded.begin_pass(true);
      loss.backward();
      sharded.end_pass();
    }
    EXPECT_EQ(watching.calls, 2 * 2 * 10) << "each block forward and again";
    EXPECT_EQ(watching.most, 2u);
    for (const auto& [block, tensor] : watching.block_tensors) EXPECT_EQ(tensor.storage().nbytes(), 0u) << block;
  });
}

/// Whether the first matrix of each block that runs is already what bf16 holds.
struct RoundedWeights : layers::BlockRunner {
  explicit RoundedWeights(const models::Prior& prior) {
    const auto parameters = prior.named_parameters();
    const auto indices = block_indices(parameters);
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (optim::is_resblock_matrix(parameters[i])) matrices.emplace(indices[i], parameters[i].parameter->tensor);
    }
  }
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override {
    const Tensor matrix = matrices.at(index).detach();
    (at::equal(matrix, matrix.to(at::kBFloat16).to(matrix.scalar_type())) ? rounded : exact) += 1;
    return function(input);
  }
  std::map<int64_t, Tensor> matrices;
  int64_t rounded = 0, exact = 0;
};

/// bf16 compute: rounding matrices on their way, in place of where they are used, changes nothing.
TEST(ShardedModel, MatricesSentInTheComputeTypeGiveTheSameBits) {
  for (const auto cut : {UnitCut::kStretch, UnitCut::kMatrices}) {
    run_thread_ranks(2, [cut](ThreadRank& rank) {
      const auto numbers_of = [&](std::optional<at::ScalarType> matrix_type) {
        auto config = tiny_config();
        config.dim = 32;
        models::Prior prior(config, {.dtype = at::kBFloat16, .head_dtype = at::kBFloat16});
        ShardedModel sharded(prior, at::kCPU, 1, Sharding::kFull, 2, rank, {.cut = cut, .matrix_type = matrix_type});
        RoundedWeights runner(prior);
        sharded.set_inner(runner);
        sharded.begin_step();
        const Tensor loss = loss_of(prior, rank.rank(), sharded);
        sharded.begin_pass(true);
        loss.backward();
        sharded.end_pass();
        const int64_t blocks = 2 * tiny_config().num_layers;
        EXPECT_EQ(runner.rounded, matrix_type == at::kBFloat16 ? blocks : 0);
        EXPECT_EQ(runner.exact, matrix_type == at::kBFloat16 ? 0 : blocks);
        std::map<std::string, Tensor> numbers{{"loss", loss.detach()}};
        sharded.with_whole_weights(nullptr, [&] {
          for (const auto& [name, parameter] : prior.named_parameters()) {
            numbers[name] = parameter->tensor.detach().clone();
          }
        });
        // A rank's slices lie elsewhere where matrices go apart: norms of whole gradients can be compared.
        const auto norms = sharded.gradient_norms();
        for (size_t i = 0; i < norms.names.size(); ++i) {
          numbers["gradient of " + norms.names[i]] = norms.norms_P[static_cast<int64_t>(i)];
        }
        return numbers;
      };
      numbers_of(at::kFloat);  // the parameters' own type: nothing to round
      const auto exact = numbers_of({}), rounded = numbers_of(at::kBFloat16);
      ASSERT_EQ(exact.size(), rounded.size());
      for (const auto& [name, number] : exact) {
        if (name.starts_with("gradient")) {
          EXPECT_TRUE(at::allclose(rounded.at(name), number, 1e-5, 0)) << name;  // another order of sums
        } else {
          EXPECT_TRUE(at::equal(rounded.at(name), number)) << name;
        }
      }
      EXPECT_FALSE(at::equal(exact.at("loss"), at::zeros({})));
    });
  }
}

/// Gradients of the parameters after micro-batches of `size` ranks in one process.
std::map<std::string, Tensor> reference_gradients(int size, int num_passes) {
  models::Prior prior(tiny_config());
  prior.set_parameter_type(at::kDouble);
  prior.materialize(at::kCPU);
  prior.initialize(1);
  for (int i = 0; i < size * num_passes; ++i) loss_of(prior, i, layers::plain_runner()).backward();
  std::map<std::string, Tensor> gradients;
  for (const auto& [name, parameter] : prior.named_parameters()) gradients[name] = parameter->tensor.grad();
  return gradients;
}

TEST(ShardedModel, PiecesHaveTheSumsOfGradientsAndTheirNorms) {
  struct Case {
    Sharding sharding;
    int group_size;
    UnitCut cut;
  };
  for (const auto& [sharding, group_size, cut] : {Case{Sharding::kFull, 4, UnitCut::kStretch},
                                                  {Sharding::kHybrid, 2, UnitCut::kStretch},
                                                  {Sharding::kHybrid, 2, UnitCut::kMatrices},
                                                  {Sharding::kOptimizer, 4, UnitCut::kStretch}}) {
    for (const int num_passes : {1, 2}) {
      const auto wanted = reference_gradients(4, num_passes);
      run_thread_ranks(4, [&, sharding = sharding, group_size = group_size, cut = cut](ThreadRank& rank) {
        models::Prior prior(tiny_config());
        prior.set_parameter_type(at::kDouble);
        ShardedModel sharded(prior, at::kCPU, 1, sharding, group_size, rank, {.cut = cut});
        sharded.begin_step();
        for (int pass = 0; pass < num_passes; ++pass) {
          const Tensor loss = loss_of(prior, rank.rank() * num_passes + pass, sharded);
          sharded.begin_pass(pass + 1 == num_passes);
          loss.backward();
          sharded.end_pass();
        }
        int64_t compared = 0;
        std::vector<storage::NamedTensor> own;
        for (const auto& [name, parameter] : sharded.parts()) own.push_back({name, parameter->tensor});
        const auto places = sharded.as_pieces(own);
        for (size_t i = 0; i < sharded.pieces().size(); ++i) {
          const auto& [name, parameter] = sharded.pieces()[i];
          const Tensor expected = storage::numbers_of(wanted.at(name), places[i].ranges, places[i].order);
          ASSERT_EQ(places[i].name, name);
          EXPECT_TRUE(at::allclose(parameter->tensor.grad(), expected, 1e-10, 1e-14)) << name;
          compared += expected.numel();
        }
        EXPECT_NEAR(static_cast<double>(compared) / static_cast<double>(prior.num_parameters()), 1.0 / group_size, 0.1);
        const auto norms = sharded.gradient_norms();
        ASSERT_EQ(norms.names.size(), wanted.size());
        for (size_t i = 0; i < norms.names.size(); ++i) {
          const double norm = norms.norms_P[static_cast<int64_t>(i)].item<double>();
          EXPECT_NEAR(norm, wanted.at(norms.names[i]).norm().item<double>(), 1e-10 * norm + 1e-14) << norms.names[i];
        }
      });
    }
  }
}

/// Of a matrix that the ranks of a hybrid group divide, for compression, each has the paper's shard (2.5, E.1).
TEST(ShardedModel, ARanksShareOfAMatrixIsThePapersShard) {
  run_thread_ranks(4, [](ThreadRank& rank) {
    models::Prior whole(tiny_config());
    whole.materialize(at::kCPU);
    whole.initialize(3);
    models::Prior prior(tiny_config());
    const ShardedModel sharded(prior, at::kCPU, 3, Sharding::kHybrid, 2, rank, {.cut = UnitCut::kMatrices});
    std::map<std::string, Tensor> shards;
    for (const auto& [name, parameter] : whole.named_parameters()) {
      const Tensor& matrix = parameter->tensor;
      const auto part = static_cast<size_t>(sharded.part());
      if (!optim::is_resblock_matrix({name, parameter})) continue;
      if (name.ends_with("in_proj_weight")) {
        const auto qkv = matrix.chunk(3);
        shards[name] = at::cat({qkv[0].chunk(2)[part], qkv[1].chunk(2)[part], qkv[2].chunk(2)[part]});
      } else if (name.ends_with("mlp.c_proj.weight")) {
        shards[name] = matrix.chunk(2, 1)[part].t();
      } else {
        shards[name] = matrix.chunk(2)[part];
      }
    }
    size_t compared = 0;
    for (const auto& [name, parameter] : sharded.pieces()) {
      if (!shards.contains(name)) continue;
      EXPECT_TRUE(at::equal(parameter->tensor, shards.at(name).flatten())) << name;
      ++compared;
    }
    EXPECT_EQ(compared, 3u * 4) << "one piece of each matrix";
  });
}

TEST(ShardedModel, PartsOfWholeWeightsAreThoseOfTheModel) {
  const auto expect_parts = [](const auto& make, const Sharding sharding, UnitCut cut) {
    auto whole = make();
    whole.materialize(at::kCPU);
    whole.initialize(7);
    run_thread_ranks(2, [&](ThreadRank& rank) {
      auto module = make();
      ShardedModel sharded(module, at::kCPU, 7, sharding, 2, rank, {.cut = cut});
      const auto parts = sharded.parts_of(models::named_tensors(whole));
      ASSERT_EQ(parts.size(), sharded.parts().size());
      for (size_t i = 0; i < parts.size(); ++i) {
        const auto& [name, parameter] = sharded.parts()[i];
        EXPECT_EQ(parts[i].name, name);
        EXPECT_TRUE(at::equal(parts[i].tensor, parameter->tensor)) << name;
      }
      EXPECT_THROW(sharded.parts_of({}), c10::ValueError);
      sharded.load(sharded.parts_of(models::named_tensors(whole)));
    });
  };
  const auto prior = [] { return models::Prior(tiny_config()); };
  const auto dvae = [] {  // kernels lie with their channels last
    return models::Dvae(models::DvaeConfig{.image_size = 16, .vocab_size = 8, .hidden_dim = 8});
  };
  expect_parts(prior, Sharding::kHybrid, UnitCut::kMatrices);
  expect_parts(prior, Sharding::kOptimizer, UnitCut::kStretch);
  expect_parts(dvae, Sharding::kFull, UnitCut::kStretch);
}

TEST(ShardedModel, ValidationSeesWholeAveragesAndTrainingGoesOn) {
  for (const Sharding sharding : {Sharding::kFull, Sharding::kHybrid, Sharding::kOptimizer}) {
    run_thread_ranks(2, [sharding](ThreadRank& rank) {
      models::Prior whole(tiny_config());
      whole.materialize(at::kCPU);
      whole.initialize(4);
      models::Prior prior(tiny_config());
      ShardedModel sharded(prior, at::kCPU, 4, sharding, 2, rank);
      optim::Ema ema(sharded.parts(), 0.5);
      for (const auto& [name, parameter] : sharded.parts()) parameter->tensor.detach().mul_(3);
      sharded.after_update();
      ema.update(1);
      const auto expect_times = [&](double factor) {
        const auto wanted = whole.named_parameters(), got = prior.named_parameters();
        for (size_t i = 0; i < wanted.size(); ++i) {
          EXPECT_TRUE(at::allclose(got[i].parameter->tensor, factor * wanted[i].parameter->tensor)) << wanted[i].name;
        }
      };
      sharded.with_whole_weights(&ema, [&] { expect_times(2); });
      sharded.with_whole_weights(nullptr, [&] { expect_times(3); });
    });
  }
}

/// A rank alone, all of whose groups break apart when it is told to.
struct Line {
  bool is_broken = false;
  int num_gathers = 0;
};
class BreakingRank : public ThreadRank {
 public:
  BreakingRank(testing::ThreadMeeting& alone, Line& line) : ThreadRank(alone, 0), alone_(alone), line_(line) {}
  Tensor all_gather(const Tensor& tensor) override {
    if (line_.is_broken) throw std::runtime_error("rank 1 is gone");
    ++line_.num_gathers;
    return ThreadRank::all_gather(tensor);
  }
  std::unique_ptr<distributed::Communicator> subgroup(const std::vector<int>&) override {
    return std::make_unique<BreakingRank>(alone_, line_);
  }

 private:
  testing::ThreadMeeting& alone_;
  Line& line_;
};

TEST(ShardedModel, AGroupThatBreaksDuringValidationIsAnErrorToBeCaught) {
  const c10::NoGradGuard no_grad;
  testing::ThreadMeeting alone(1);
  for (const bool is_line_broken : {true, false}) {
    Line line;
    BreakingRank rank(alone, line);
    models::Prior prior(tiny_config());
    ShardedModel sharded(prior, at::kCPU, 4, Sharding::kOptimizer, 1, rank);
    optim::Ema ema(sharded.parts(), 0.5);
    int num_gathers = 0;
    const auto body = [&] {
      num_gathers = line.num_gathers;
      line.is_broken = is_line_broken;
      if (!is_line_broken) throw std::logic_error("stopped");
    };
    if (is_line_broken) {
      EXPECT_THROW(sharded.with_whole_weights(&ema, body), std::runtime_error);
    } else {
      EXPECT_THROW(sharded.with_whole_weights(&ema, body), std::logic_error);
    }
    EXPECT_GT(num_gathers, 0);
    EXPECT_EQ(line.num_gathers, num_gathers) << "no word to the others behind an error";
  }
}

/// Counts the whole blocks whenever one runs in another runner.
struct CountingRunner : layers::BlockRunner {
  CountingRunner(layers::BlockRunner& inner, const models::Prior& prior) : inner(inner), watching(prior) {}
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override {
    return inner.run(index, input, [&](const Tensor& x) { return watching.run(index, x, function); });
  }
  layers::BlockRunner& inner;
  WatchingRunner watching;
};

TEST(ShardedModel, EvaluationSeesAveragesABlockAtATime) {
  models::Prior whole(tiny_config(5));
  whole.materialize(at::kCPU);
  whole.initialize(4);
  const c10::NoGradGuard no_grad;
  for (const auto& [name, parameter] : whole.named_parameters()) parameter->tensor.mul_(2);
  const Tensor wanted = loss_of(whole, 0, layers::plain_runner());
  for (const int group_size : {1, 2}) {
    run_thread_ranks(2, [&, group_size](ThreadRank& rank) {
      const c10::NoGradGuard no_grad_here;
      models::Prior prior(tiny_config(5));
      ShardedModel sharded(prior, at::kCPU, 4, Sharding::kHybrid, group_size, rank);
      WatchingRunner of_training(prior);
      sharded.set_inner(of_training);
      optim::Ema ema(sharded.parts(), 0.5);
      for (const auto& [name, parameter] : sharded.parts()) parameter->tensor.detach().mul_(3);
      sharded.after_update();
      ema.update(1);
      sharded.with_weights_by_blocks(&ema, [&] {
        CountingRunner counting(sharded, prior);
        for (int pass = 0; pass < 2; ++pass) EXPECT_TRUE(at::allclose(loss_of(prior, 0, counting), wanted)) << pass;
        EXPECT_EQ(counting.watching.most, 2u);
        EXPECT_EQ(of_training.calls, 0) << "nothing that training needs around a block";
      });
      for (const auto& [block, tensor] : of_training.block_tensors) {
        EXPECT_EQ(tensor.storage().nbytes(), 0u) << block;
      }
      for (const auto& [name, parameter] : sharded.parts()) {
        EXPECT_FALSE(at::equal(parameter->tensor, *storage::find_tensor(ema.tensors(), name))) << name;
      }
      sharded.begin_step();
      loss_of(prior, 0, sharded);
      EXPECT_EQ(of_training.calls, 10);
    });
  }
}

/// Bytes between the steps of a model of 200 million parameters, counted from one rank's tensors.
struct Counted {
  int64_t weights = 0, gradients = 0, moments = 0, average = 0;
  int64_t all() const { return weights + gradients + moments + average; }
};

Counted counted_bytes(const models::PriorConfig& config, Sharding sharding, int size) {
  Counted counted;
  run_thread_ranks(size, [&](ThreadRank& rank) {
    models::Prior prior(config);
    for (const auto& [name, parameter] : prior.named_parameters()) parameter->init = layers::Init::zeros();  // fast
    ShardedModel sharded(prior, at::kCPU, 0, sharding, size, rank);
    const optim::Ema ema(sharded.parts(), 0.9);
    optim::AdamW optimizer(sharded.pieces(), {});
    sharded.begin_step();
    // In place of a backward pass: gradients of every shape, without memory of their own.
    for (const auto& [name, parameter] : prior.named_parameters()) {
      parameter->tensor.mutable_grad() = at::ones({1}).expand(parameter->tensor.sizes());
    }
    sharded.begin_pass(true);
    sharded.end_pass();
    optimizer.step(1e-3);
    if (rank.rank() != size - 1) return;  // the rank with the padding
    counted.weights = sharded.bytes().weights;
    counted.gradients = sharded.bytes().gradients;
    for (const auto& [name, tensor] : optimizer.state()) {
      if (name.find(".exp_avg") != std::string::npos) counted.moments += static_cast<int64_t>(tensor.nbytes());
    }
    for (const auto& [name, tensor] : ema.tensors()) counted.average += static_cast<int64_t>(tensor.nbytes());
  });
  return counted;
}

TEST(ShardedModel, BytesOfARankFallAsOneOverNAndAreThePlans) {
  PriorTraining config;
  config.model = {.text_context = 64,
                  .text_vocab_size = 4096,
                  .grid_size = 16,
                  .image_vocab_size = 2048,
                  .dim = 1024,
                  .num_heads = 16,
                  .num_layers = 16};
  config.precision = Precision::kF32;
  config.trainer.batch_size = 4;
  ASSERT_GE(models::Prior(config.model).num_parameters(), 200'000'000);
  const double whole = 5 * 4 * static_cast<double>(models::Prior(config.model).num_parameters());
  for (const int size : {2, 4}) {
    const Counted counted = counted_bytes(config.model, Sharding::kFull, size);
    EXPECT_NEAR(static_cast<double>(counted.all()) / (whole / size), 1, 0.01) << size;
    DeviceDescription device = load_device("cpu", DALLE_SOURCE_DIR);
    device.devices_per_machine = size;
    const DeviceMemory plan =
        Plan(config, config.model, device, {.num_devices = size, .sharding = Sharding::kFull}).memory();
    const auto expect_planned = [size](const char* what, int64_t bytes, double planned) {
      EXPECT_NEAR(static_cast<double>(bytes) / planned, 1, 0.1) << what << " of " << size;
    };
    expect_planned("weights", counted.weights, plan.weights);
    expect_planned("gradients", counted.gradients, plan.gradients);
    expect_planned("moments", counted.moments, plan.moments);
    expect_planned("average", counted.average, plan.average);
  }
}

}  // namespace
}  // namespace dalle::training

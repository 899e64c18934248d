// PowerSGD between gradients and AdamW, over ranks that are threads.
#include "dalle/training/gradient_compression.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <map>

#include "dalle/core/error.h"
#include "dalle/layers/transformer.h"
#include "dalle/optim/adamw.h"
#include "dalle/optim/gradients.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"
#include "support/thread_ranks.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

using testing::bitwise_equal;
using testing::close_to;
using testing::random_tensor;
using testing::run_thread_ranks;
using testing::ThreadRank;

/// A transformer's layer, a convolution of a residual block, an embedding and what is not trained, in f64.
struct Model : layers::Module {
  explicit Model(at::ScalarType type = at::kDouble)
      : transformer(*this, "transformer", {.dim = 16, .num_heads = 2, .num_layers = 1}),
        kernel(add_parameter("blocks.group_1.block_1.w", {16, 8, 3, 3}, layers::Init::normal(1), true, true)),
        embedding(add_parameter("embedding.weight", {9, 16}, layers::Init::normal(1), /*decays=*/false)),
        frozen(add_parameter("frozen", {3}, layers::Init::ones())) {
    materialize(at::kCPU);
    initialize(1);
    for (const auto& [name, parameter] : named_parameters()) parameter->tensor = parameter->tensor.detach().to(type);
    set_requires_grad(true);
    set_requires_grad(false, {"frozen"});
  }
  layers::Transformer transformer;
  layers::Parameter &kernel, &embedding, &frozen;
};

using Gradients = std::map<std::string, Tensor>;

Tensor share(const std::string& name, at::IntArrayRef shape, int rank, int step) {
  const auto seed = stable_hash(name) + static_cast<uint64_t>(100 * step + rank);
  return random_tensor(seed, shape).to(at::kDouble) * 1e-2;
}

/// Shares `first` to `last` of the gradients of a step.
void set_shares(const layers::Module& model, int first, int last, int step) {
  for (const auto& [name, parameter] : model.named_parameters()) {
    if (!parameter->tensor.requires_grad()) continue;
    Tensor sum = at::zeros_like(parameter->tensor.detach());
    for (int rank = first; rank < last; ++rank) sum += share(name, sum.sizes(), rank, step);
    parameter->tensor.mutable_grad() = sum;
  }
}

Gradients gradients_of(const layers::Module& model) {
  Gradients out;
  for (const auto& [name, parameter] : model.named_parameters()) {
    if (parameter->tensor.grad().defined()) out[name] = parameter->tensor.grad().clone();
  }
  return out;
}

const CompressionConfig kConfig{{.rank = 2}};

TEST(GradientCompression, MatricesAreCompressedAndAllElseIsSummed) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    Model model;
    GradientCompression compression(whole_gradients(model.named_parameters(), ranks), kConfig, 5);
    set_shares(model, ranks.rank(), ranks.rank() + 1, 0);
    const Tensor norm = compression.reduce();
    EXPECT_TRUE(close_to(norm, optim::global_norm(model.named_parameters()), 1e-6));
    const Gradients actual = gradients_of(model);
    EXPECT_FALSE(actual.contains("frozen"));
    int compressed = 0;
    for (const auto& [name, gradient] : actual) {
      const Tensor exact = share(name, gradient.sizes(), 0, 0) + share(name, gradient.sizes(), 1, 0);
      const bool is_matrix = name.ends_with("weight") && gradient.dim() == 2 && !name.starts_with("embedding");
      if (is_matrix || name.starts_with("blocks.")) {
        ++compressed;
        const Tensor rows = gradient.flatten(1);
        const int64_t pieces = name.ends_with("in_proj_weight") ? 3 : 1;  // q, k, v apart
        for (const Tensor& part : rows.chunk(pieces)) EXPECT_EQ(at::linalg_matrix_rank(part, 1e-12).item<int64_t>(), 2);
        EXPECT_GT(testing::relative_error(gradient, exact), 0.1) << name;
      } else {
        EXPECT_TRUE(close_to(gradient, exact, 1e-15)) << name;
      }
    }
    EXPECT_EQ(compressed, 5);  // in_proj, out_proj, c_fc, c_proj, kernel
  });
}

TEST(GradientCompression, RunsAreTheSameForAnyNumberOfRanks) {
  std::vector<Gradients> alone;
  const auto run = [&](ThreadRank& ranks, auto&& see) {
    Model model;
    GradientCompression compression(whole_gradients(model.named_parameters(), ranks), kConfig, 5);
    const int shares = 6 / ranks.world_size();
    for (int step = 0; step < 4; ++step) {
      set_shares(model, ranks.rank() * shares, (ranks.rank() + 1) * shares, step);
      compression.reduce();
      see(step, gradients_of(model));
    }
  };
  run_thread_ranks(1, [&](ThreadRank& ranks) { run(ranks, [&](int, const Gradients& all) { alone.push_back(all); }); });
  for (const int size : {2, 3}) {
    run_thread_ranks(size, [&](ThreadRank& ranks) {
      run(ranks, [&](int step, const Gradients& all) {
        for (const auto& [name, expected] : alone[static_cast<size_t>(step)]) {
          EXPECT_TRUE(close_to(all.at(name), expected, 1e-11)) << size << " ranks, step " << step << " " << name;
        }
      });
    });
  }
}

TEST(GradientCompression, AGradientThatOneRankHasGoesToAll) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    Model model;
    GradientCompression compression(whole_gradients(model.named_parameters(), ranks), kConfig, 5);
    for (int step = 0; step < 2; ++step) {
      set_shares(model, ranks.rank(), ranks.rank() + 1, step);
      model.embedding.tensor.mutable_grad() = Tensor();  // nobody's
      if (ranks.rank() == 1) {
        model.kernel.tensor.mutable_grad() = Tensor();  // rank 0's alone
        model.transformer.resblocks[0]->ln_1.bias.tensor.mutable_grad() = Tensor();
      }
      EXPECT_TRUE(at::isfinite(compression.reduce()).item<bool>());
      const Gradients actual = gradients_of(model);
      EXPECT_FALSE(actual.contains("embedding.weight"));
      const Tensor& bias = actual.at("transformer.resblocks.0.ln_1.bias");
      EXPECT_TRUE(bitwise_equal(bias, share("transformer.resblocks.0.ln_1.bias", bias.sizes(), 0, step)));
      EXPECT_GT(actual.at("blocks.group_1.block_1.w").abs().max().item<double>(), 0);
    }
  });
}

TEST(GradientCompression, StateContinuesWithAnotherNumberOfRanks) {
  std::vector<storage::NamedTensor> state;
  Gradients expected;
  run_thread_ranks(2, [&](ThreadRank& ranks) {
    Model model;
    GradientCompression compression(whole_gradients(model.named_parameters(), ranks), kConfig, 5);
    for (int step = 0; step < 3; ++step) {
      set_shares(model, ranks.rank(), ranks.rank() + 1, step);
      compression.reduce();
    }
    std::vector<storage::NamedTensor> saved;
    for (const auto& piece : compression.state()) saved.push_back({piece.name, piece.values.view(piece.shape)});
    set_shares(model, ranks.rank(), ranks.rank() + 1, 3);
    compression.reduce();
    if (ranks.rank() == 0) state = saved, expected = gradients_of(model);
  });
  EXPECT_EQ(state.size(), 5U);  // in_proj, out_proj, c_fc, c_proj, kernel
  run_thread_ranks(1, [&](ThreadRank& ranks) {
    Model model;
    GradientCompression compression(whole_gradients(model.named_parameters(), ranks), kConfig, 5);
    auto given = state;
    given.push_back({"other.exp_avg", at::zeros({1})});
    compression.load_state(given);
    EXPECT_EQ(given.size(), 1U);  // its own are taken out
    set_shares(model, 0, 2, 3);
    compression.reduce();
    for (const auto& [name, gradient] : gradients_of(model)) {
      EXPECT_TRUE(close_to(gradient, expected.at(name), 1e-11)) << name;
    }
    auto wrong = state;
    wrong[0].name = "powersgd.other";
    const auto message = testing::message_of<CheckpointError>([&] { compression.load_state(wrong); });
    EXPECT_NE(message.find("'powersgd.other'"), std::string::npos) << message;
  });
}

/// What buffers hold of matrices that are now summed exactly goes into one update, and is saved until one was made.
TEST(GradientCompression, WhatIsCarriedWaitsForAnUpdate) {
  const std::string name = "transformer.resblocks.0.attn.out_proj.weight";
  run_thread_ranks(2, [&](ThreadRank& ranks) {
    Model model;
    const CompressionConfig exact{{.rank = 16}};  // factors no smaller than the matrix
    GradientCompression compression(whole_gradients(model.named_parameters(), ranks), exact, 5);
    const Tensor left = random_tensor(3, {16, 16}).to(at::kDouble);
    std::vector<storage::NamedTensor> given{{"powersgd." + name, left}};
    compression.load_state(given);
    const auto saved = [&] {
      for (const auto& piece : compression.state()) {
        if (piece.name == "powersgd." + name) return piece.values.view(piece.shape);
      }
      return at::zeros_like(left);
    };
    EXPECT_TRUE(close_to(saved(), left, 1e-12)) << "not lost by saving at once";
    const auto sum_of = [&](int step) { return share(name, {16, 16}, 0, step) + share(name, {16, 16}, 1, step); };
    const auto gradient = [&](int step, bool is_finite) {
      set_shares(model, ranks.rank(), ranks.rank() + 1, step);
      if (!is_finite && ranks.rank() == 1) model.embedding.tensor.mutable_grad()[0][0] = NAN;
      EXPECT_EQ(compression.reduce().isfinite().item<bool>(), is_finite) << step;
      return gradients_of(model).at(name);
    };
    gradient(0, false);
    EXPECT_TRUE(close_to(saved(), left, 1e-12)) << "the update was skipped";
    EXPECT_TRUE(close_to(gradient(1, true), sum_of(1) + left, 1e-12));
    EXPECT_EQ(saved().abs().max().item<double>(), 0);
    EXPECT_TRUE(close_to(gradient(2, true), sum_of(2), 1e-12)) << "once";
  });
}

TEST(GradientCompression, SaysWhatItSends) {
  const auto alone = distributed::make_singleton();
  Model model;
  const GradientCompression compression(whole_gradients(model.named_parameters(), *alone), kConfig, 5);
  // q, k, v, out: 4 of 16x16 as 2 * 32; two of 64x16 as 2 * 80; 16x72 as 2 * 88. Others: 144, and gains and biases of 48 +
  // 16 + 64 + 16 + 4 * 16.
  const int64_t elements = 4 * 256 + 2 * 1024 + 1152, factors = 4 * 64 + 2 * 160 + 176, others = 144 + 208;
  EXPECT_DOUBLE_EQ(compression.compression_rate(), 1 - static_cast<double>(factors + others) / (elements + others));
  EXPECT_EQ(compression.describe(),
            "PowerSGD of rank 2: 7 matrices of 4,224 numbers are sent as 752, compression rate 82.2 %; of all "
            "gradients 75.9 % "
            "are not sent");
  // A rank at which factors are no smaller than the matrix is no compression.
  const GradientCompression none(whole_gradients(model.named_parameters(), *alone), {{.rank = 16}}, 5);
  EXPECT_EQ(none.compression_rate(), 0);
}

/// Mean loss of a transformer that learns another one's outputs, over the last fifth of `num_steps` steps of 2 ranks; with
/// rank 0 gradients are summed exactly.
double trained_loss(int64_t rank, uint64_t seed, int num_steps) {
  struct Stack : layers::Module {
    explicit Stack(uint64_t seed) : transformer(*this, "t", {.dim = 64, .num_heads = 2, .num_layers = 2}) {
      materialize(at::kCPU);
      initialize(seed);
      set_requires_grad(true);
    }
    Tensor forward(const Tensor& x) {
      return transformer.forward(
          x, [](int64_t) { return layers::dense_attention(Tensor()); }, layers::plain_runner());
    }
    layers::Transformer transformer;
  };
  double loss_sum = 0;
  run_thread_ranks(2, [&](ThreadRank& ranks) {
    Stack teacher(1000), student(seed);
    const auto parameters = student.named_parameters();
    optim::AdamW optimizer(parameters, {.beta2 = 0.96, .weight_decay = 0});
    std::optional<GradientCompression> compression;
    if (rank > 0) {
      compression.emplace(whole_gradients(parameters, ranks), CompressionConfig{{.rank = rank}}, 5);
      EXPECT_GE(compression->compression_rate(), 0.8);
    }
    for (int step = 0; step < num_steps; ++step) {
      const auto batch = static_cast<uint64_t>(10'000 * seed) + static_cast<uint64_t>(2 * step + ranks.rank());
      const Tensor x = random_tensor(batch, {8, 6, 64});
      Tensor target;
      {
        const c10::NoGradGuard no_grad;
        target = teacher.forward(x);
      }
      optimizer.zero_grad();
      const Tensor loss = (student.forward(x) - target).square().mean() / 2;  // this rank's share
      loss.backward();
      if (compression) {
        optim::clip_by_global_norm(parameters, 4, compression->reduce());
      } else {
        for (const auto& [name, parameter] : parameters) ranks.all_reduce_sum(parameter->tensor.mutable_grad());
        optim::clip_by_global_norm(parameters, 4);
      }
      optimizer.step(3e-3 * (1 - static_cast<double>(step) / num_steps));
      Tensor total = loss.detach().clone();
      ranks.all_reduce_sum(total);
      if (ranks.rank() == 0 && step >= num_steps * 4 / 5) loss_sum += total.item<double>() / (num_steps / 5.0);
    }
  });
  return loss_sum;
}

TEST(GradientCompression, TrainingAtMoreThan80PercentComesNearTheUncompressedLoss) {
  const double untrained = trained_loss(0, 1, 5), exact = trained_loss(0, 1, 400), compressed = trained_loss(6, 1, 400);
  EXPECT_LT(exact, 0.25 * untrained);
  EXPECT_LT(compressed, 1.1 * exact);
  EXPECT_NE(compressed, exact);
}

}  // namespace
}  // namespace dalle::training

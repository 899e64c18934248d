// Compressed gradients are sent beside the backward pass, and are what they are after it.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <cmath>

#include "dalle/layers/transformer.h"
#include "dalle/models/prior.h"
#include "dalle/training/sharded_model.h"
#include "support/late_rank.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"
#include "support/thread_ranks.h"

namespace dalle::training {
namespace {

using distributed::ErrorFormat;
using testing::bitwise_equal;
using testing::LateRank;
using testing::random_tensor;
using testing::run_thread_ranks;
using testing::ThreadRank;

constexpr int64_t kLayers = 3, kBlocks = 2 * kLayers;

/// A stack of layers with a table before it, as embeddings are.
struct Stack : layers::Module {
  Stack()
      : transformer(*this, "transformer", {.dim = 16, .num_heads = 2, .num_layers = kLayers}),
        table(add_parameter("table", {6, 16}, layers::Init::normal(1), /*decays=*/false)) {
    materialize(at::kCPU);
    initialize(1);
  }
  Tensor loss(const Tensor& x) const {
    const auto attend = [](int64_t) { return layers::dense_attention(Tensor()); };
    return transformer.forward(x + table.tensor, attend, layers::plain_runner()).square().mean();
  }
  layers::Transformer transformer;
  layers::Parameter& table;
};

/// A model and its compression on one rank.
struct Side {
  Side(distributed::Communicator& ranks, const CompressionConfig& config)
      : compression(whole_gradients(model.named_parameters(), ranks), config, 5) {}
  Stack model;
  GradientCompression compression;
};

Tensor input_of(int64_t step, int64_t pass, int64_t rank) {
  return random_tensor(static_cast<uint64_t>(100 * step + 10 * pass + rank), {2, 6, 16});
}

void expect_same(const Side& actual, const Side& expected, const std::string& what) {
  const auto some = actual.model.named_parameters(), others = expected.model.named_parameters();
  for (size_t i = 0; i < some.size(); ++i) {
    EXPECT_TRUE(bitwise_equal(some[i].parameter->tensor.grad(), others[i].parameter->tensor.grad()))
        << some[i].name << ", " << what;
  }
  const auto buffers = actual.compression.state(), wanted = expected.compression.state();
  ASSERT_EQ(buffers.size(), wanted.size());
  for (size_t i = 0; i < buffers.size(); ++i) {
    EXPECT_TRUE(bitwise_equal(buffers[i].values, wanted[i].values)) << buffers[i].name << ", " << what;
  }
}

/// Steps of two micro-batches on two ranks, one of which has a gradient in step 3 that is not finite.
TEST(GradientOverlap, TheLastPassSendsAndNothingElseIsDifferent) {
  for (const ErrorFormat format : {ErrorFormat::kF32, ErrorFormat::kF16}) {
    const CompressionConfig config{{.rank = 2, .error_buffers = format, .factors = format}};
    run_thread_ranks(2, [&](ThreadRank& ranks) {
      LateRank late(ranks);
      Side beside(late, config), after(ranks, config);
      for (int64_t step = 0; step < 5; ++step) {
        int64_t begun_at_the_end = -1;
        late.num_begun = 0;
        for (Side* side : {&beside, &after}) {
          for (const auto& [name, parameter] : side->model.named_parameters()) parameter->tensor.mutable_grad().reset();
          for (int64_t pass = 0; pass < 2; ++pass) {
            Tensor x = input_of(step, pass, ranks.rank()).requires_grad_();
            Tensor loss = side->model.loss(x);
            if (step == 3 && ranks.rank() == 1) loss = loss * INFINITY;
            if (side == &beside) {
              EXPECT_EQ(late.num_begun, 0) << "while gradients are being accumulated";
              if (pass == 1) side->compression.arm();
              x.register_hook([&](const Tensor& gradient) {
                begun_at_the_end = late.num_begun;
                return gradient;
              });
            }
            loss.backward();
          }
        }
        const Tensor norm = beside.compression.reduce(), expected = after.compression.reduce();
        EXPECT_TRUE(bitwise_equal(norm, expected)) << step;
        EXPECT_EQ(std::isinf(norm.item<float>()), step == 3);
        expect_same(beside, after, std::to_string(step));
        EXPECT_EQ(beside.compression.num_blocks(), kBlocks);
        EXPECT_EQ(beside.compression.num_overlapped(), step == 0 ? 0 : kBlocks);
        EXPECT_EQ(after.compression.num_overlapped(), 0);
        // Before the input of the first block has its gradient: P of all blocks, Q of all but the last one.
        EXPECT_EQ(begun_at_the_end, step == 0 ? 0 : 2 * kBlocks - 1);
      }
    });
  }
}

TEST(GradientOverlap, ScalesAreAskedForAsBlocksAreCompleteAndDividedOut) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    const CompressionConfig config{{.rank = 2}};
    Side scaled(ranks, config), plain(ranks, config);
    std::vector<int64_t> asked;
    scaled.compression.divide_by([&](int64_t block) {
      asked.push_back(block);
      return at::scalar_tensor(std::exp2(static_cast<float>(block)));
    });
    // Gradients times the scales, of which 2^0 to 2^5 leave them exact.
    const auto scaled_parameters = scaled.model.named_parameters();
    const auto blocks = block_indices(scaled_parameters);
    for (size_t i = 0; i < blocks.size(); ++i) {
      const double factor = blocks[i] < 0 ? 1 : std::exp2(static_cast<double>(blocks[i]));
      scaled_parameters[i].parameter->tensor.register_hook(
          [factor](const Tensor& gradient) { return gradient * factor; });
    }
    for (int64_t step = 0; step < 3; ++step) {
      asked.clear();
      for (Side* side : {&scaled, &plain}) {
        const auto parameters = side->model.named_parameters();
        for (const auto& [name, parameter] : parameters) parameter->tensor.mutable_grad().reset();
        side->compression.arm();
        side->model.loss(input_of(step, 0, ranks.rank())).backward();
      }
      EXPECT_EQ(asked.size(), step == 0 ? 0U : static_cast<size_t>(kBlocks)) << "in the pass";
      EXPECT_TRUE(bitwise_equal(scaled.compression.reduce(), plain.compression.reduce()));
      expect_same(scaled, plain, std::to_string(step));
      EXPECT_THAT(asked, ::testing::ElementsAre(5, 4, 3, 2, 1, 0));
    }
  });
}

// ------------------------------------------------------------------------------------------------------ split over ranks

models::PriorConfig tiny_config() {
  return {.text_context = 8,
          .text_vocab_size = 16,
          .grid_size = 4,
          .image_vocab_size = 16,
          .dim = 16,
          .num_heads = 2,
          .num_layers = kLayers};
}

/// A prior split over pairs of ranks.
struct SplitSide {
  explicit SplitSide(distributed::Communicator& ranks)
      : model(tiny_config()), sharded(model, at::kCPU, 1, Sharding::kHybrid, 2, ranks, {.cut = UnitCut::kMatrices}) {}

  void pass(int64_t rank, int64_t step) {
    sharded.begin_step();
    for (int64_t pass = 0; pass < 2; ++pass) {
      const auto& config = model.config();
      const int64_t seed = 8 * step + 2 * rank + pass;
      const Tensor caption = (at::arange(config.max_caption_tokens(), at::kLong) + seed).remainder(16).unsqueeze(0);
      const Tensor image = (at::arange(config.image_context(), at::kLong) * 3 + seed).remainder(16).unsqueeze(0);
      const auto loss = model.loss(caption, image, {}, sharded);
      sharded.begin_pass(pass == 1);
      if (compression && pass == 1 && arms) compression->arm();
      (loss.text + loss.image).backward();
      sharded.end_pass();
    }
  }

  models::Prior model;
  ShardedModel sharded;
  std::unique_ptr<GradientCompression> compression;
  bool arms = false;
};

void expect_same_pieces(const SplitSide& actual, const SplitSide& expected, int64_t step) {
  for (size_t i = 0; i < actual.sharded.pieces().size(); ++i) {
    const auto& [name, parameter] = actual.sharded.pieces()[i];
    EXPECT_TRUE(bitwise_equal(parameter->tensor.grad(), expected.sharded.pieces()[i].parameter->tensor.grad()))
        << name << ", step " << step;
  }
}

TEST(GradientOverlap, GroupsSumTheirPartsBesideTheBackwardPass) {
  run_thread_ranks(4, [](ThreadRank& ranks) {
    LateRank late(ranks);
    SplitSide beside(late), at_once(ranks);
    for (int64_t step = 0; step < 2; ++step) {
      beside.pass(ranks.rank(), step);
      at_once.pass(ranks.rank(), step);
      // All but the first block, which the pass ends with, and what is in no block.
      EXPECT_EQ(beside.sharded.num_overlapped(), kBlocks - 1);
      expect_same_pieces(beside, at_once, step);
    }
  });
}

TEST(GradientOverlap, GroupsSendFactorsBesideTheBackwardPass) {
  run_thread_ranks(4, [](ThreadRank& ranks) {
    LateRank late(ranks);
    SplitSide beside(late), after(ranks);
    for (SplitSide* side : {&beside, &after}) {
      side->compression =
          std::make_unique<GradientCompression>(side->sharded.leave_replicas(), CompressionConfig{{.rank = 2}}, 5);
      side->sharded.when_complete([side](int64_t block) { side->compression->complete(block); });
    }
    beside.arms = true;
    for (int64_t step = 0; step < 4; ++step) {
      beside.pass(ranks.rank(), step);
      after.pass(ranks.rank(), step);
      EXPECT_TRUE(bitwise_equal(beside.compression->reduce(), after.compression->reduce())) << step;
      EXPECT_EQ(beside.compression->num_blocks(), kBlocks);
      EXPECT_EQ(beside.compression->num_overlapped(), step == 0 ? 0 : kBlocks - 1);
      EXPECT_EQ(after.compression->num_overlapped(), 0);
      expect_same_pieces(beside, after, step);
    }
  });
}

/// What is told of a layout before it is launched.
TEST(PiecesOfPart, AreThoseOfAShardedModel) {
  const models::Prior shapes(tiny_config());
  const CompressionConfig config{{.rank = 2}};
  run_thread_ranks(4, [&](ThreadRank& ranks) {
    SplitSide side(ranks);
    CompressionSizes all;
    for (const int64_t part : {0, 1})
      all += compression_sizes(pieces_of_part(shapes.named_parameters(), 2, part), config);
    const GradientShare share = side.sharded.leave_replicas();
    auto planned = compressed_matrices(pieces_of_part(shapes.named_parameters(), 2, side.sharded.part()), config);
    auto actual = compressed_matrices(share.pieces, config);
    ASSERT_EQ(planned.size(), actual.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(planned[i].name, actual[i].name);
      EXPECT_EQ(planned[i].factor_elements(2), actual[i].factor_elements(2));
    }
    const GradientCompression compression(share, config, 5);
    EXPECT_EQ(compression.describe(), all.describe(2));
    EXPECT_GT(compression.matrix_rate(), 0.5);
  });
}

}  // namespace
}  // namespace dalle::training

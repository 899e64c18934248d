// Attention by blocks against dense attention with a boolean mask.
#include "dalle/layers/sparse_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::random_tensor;

constexpr AttentionKind kKinds[] = {AttentionKind::kFull, AttentionKind::kRow, AttentionKind::kColumn,
                                    AttentionKind::kConv};

struct Problem {
  SequenceLayout layout;
  int64_t batch, heads, head_dim;
};
// Heads of usual and of odd sizes, lengths that fill blocks and that do not.
constexpr Problem kProblems[] = {{{5, 3}, 2, 3, 8}, {{32, 8}, 1, 2, 32}, {{7, 8}, 2, 1, 64}, {{40, 9}, 1, 2, 20}};

std::shared_ptr<const BlockSparsePlan> plan_of(AttentionKind kind, const SequenceLayout& layout) {
  return std::make_shared<BlockSparsePlan>(
      make_block_sparse_plan(attention_mask(kind, layout), attention_order(kind, layout, layout.length())));
}

// q, k, v as a block makes them: views of one tensor [B, L, 3, H, K].
Tensor packed(const Problem& p, at::ScalarType type, double scale = 1) {
  return (random_tensor(1, {p.batch, p.layout.length(), 3, p.heads, p.head_dim}) * scale).to(at::kBFloat16).to(type);
}

struct Result {
  Tensor out, grad;
};

Result run(const Tensor& packed_qkv, const AttendFunction& attend) {
  const Tensor leaf = packed_qkv.detach().clone().requires_grad_();
  const auto parts = leaf.permute({2, 0, 3, 1, 4}).unbind(0);
  const Tensor out = attend(parts[0], parts[1], parts[2]);
  (out * random_tensor(7, out.sizes()).to(at::kBFloat16).to(out.scalar_type())).sum().backward();
  return {out.detach(), leaf.grad()};
}

Result reference(const Problem& p, AttentionKind kind, double scale = 1) {
  const Tensor bias = mask_to_bias(attention_mask(kind, p.layout), at::kDouble);
  return run(packed(p, at::kDouble, scale), dense_attention(bias));
}

double error(const Tensor& actual, const Tensor& expected) {
  return ((actual.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

TEST(SparseAttention, IsDenseAttentionWithTheMask) {
  for (const auto& p : kProblems) {
    for (const auto kind : kKinds) {
      const Result exact = reference(p, kind);
      const auto plan = plan_of(kind, p.layout);
      for (const auto& [type, bound] : {std::pair{at::kFloat, 2e-6}, {at::kBFloat16, 1e-2}}) {
        const Result actual = run(packed(p, type), sparse_attention(plan));
        EXPECT_EQ(actual.out.scalar_type(), type);
        EXPECT_LT(error(actual.out, exact.out), bound) << enum_name(kind) << " " << type << " " << p.head_dim;
        EXPECT_LT(error(actual.grad, exact.grad), bound) << enum_name(kind) << " " << type << " " << p.head_dim;
      }
    }
  }
}

// The dense formula multiplies the weights by AttentionDropout::factors; f64 there, so that only the masks are shared.
TEST(SparseAttention, DropsTheSameWeightsAsDenseAttention) {
  for (const auto& p : kProblems) {
    std::vector<int64_t> positions(static_cast<size_t>(p.batch));
    std::iota(positions.begin(), positions.end(), 3);
    const auto dropout = attention_dropout({.seed = 5, .positions = positions, .attention_rate = 0.3}, 1);
    for (const auto kind : kKinds) {
      const Tensor bias = mask_to_bias(attention_mask(kind, p.layout), at::kDouble);
      const Result exact = run(packed(p, at::kDouble), dense_attention(bias, dropout));
      EXPECT_GT(error(reference(p, kind).out, exact.out), 0.05) << "something is dropped";
      const auto plan = plan_of(kind, p.layout);
      for (const auto& [type, bound] : {std::pair{at::kFloat, 3e-6}, {at::kBFloat16, 1e-2}}) {
        const Result actual = run(packed(p, type), sparse_attention(plan, dropout));
        EXPECT_LT(error(actual.out, exact.out), bound) << enum_name(kind) << " " << type << " " << p.head_dim;
        EXPECT_LT(error(actual.grad, exact.grad), bound) << enum_name(kind) << " " << type << " " << p.head_dim;
      }
    }
  }
}

TEST(SparseAttention, LargeScoresOverflowNothing) {
  const Problem& p = kProblems[1];
  const Result exact = reference(p, AttentionKind::kConv, 30);
  const Result actual = run(packed(p, at::kFloat, 30), sparse_attention(plan_of(AttentionKind::kConv, p.layout)));
  EXPECT_TRUE(at::isfinite(actual.grad).all().item<bool>());
  EXPECT_LT(error(actual.out, exact.out), 1e-5);
  EXPECT_LT(error(actual.grad, exact.grad), 1e-4);
}

// Bit by bit: what is masked has weight 0, whatever it holds.
TEST(SparseAttention, WhatIsNotSeenChangesNoBit) {
  const Problem& p = kProblems[1];
  const int64_t position = p.layout.text_context + 20;
  for (const auto kind : kKinds) {
    const auto plan = plan_of(kind, p.layout);
    const Tensor sees = attention_mask(kind, p.layout).select(1, position);  // queries that see the position
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      const Tensor before = packed(p, type);
      Tensor after = before.clone();
      after.select(1, position).slice(1, 1).mul_(-50);  // its key and value
      const Tensor a = run(before, sparse_attention(plan)).out, b = run(after, sparse_attention(plan)).out;
      const Tensor blind = sees.logical_not().nonzero().squeeze(1);
      EXPECT_TRUE(bitwise_equal(a.index_select(2, blind), b.index_select(2, blind))) << enum_name(kind) << type;
      EXPECT_FALSE(at::equal(a, b));
    }
  }
}

TEST(SparseAttention, ThreadsAndBatchChangeNoBit) {
  const Problem& p = kProblems[0];
  const auto plan = plan_of(AttentionKind::kColumn, p.layout);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Tensor both = packed(p, type);
    const Result together = run(both, sparse_attention(plan));
    at::set_num_threads(3);
    const Result threads = run(both, sparse_attention(plan));
    at::set_num_threads(1);
    EXPECT_TRUE(bitwise_equal(threads.out, together.out));
    EXPECT_TRUE(bitwise_equal(threads.grad, together.grad));
    EXPECT_TRUE(bitwise_equal(run(both.slice(0, 0, 1), sparse_attention(plan)).out, together.out.slice(0, 0, 1)));
  }
}

TEST(SparseAttention, RefusesOtherShapesAndTypes) {
  const auto plan = plan_of(AttentionKind::kRow, {5, 3});
  const Tensor good = at::zeros({1, 2, 14, 8}), shorter = at::zeros({1, 2, 13, 8});
  EXPECT_THROW(block_sparse_attention(shorter, shorter, shorter, plan), c10::ValueError);
  EXPECT_THROW(block_sparse_attention(good, good.to(at::kBFloat16), good, plan), c10::ValueError);
  EXPECT_THROW(block_sparse_attention(good.to(at::kDouble), good.to(at::kDouble), good.to(at::kDouble), plan),
               c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

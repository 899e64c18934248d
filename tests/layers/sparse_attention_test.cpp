// Attention by blocks against dense attention with a boolean mask.
#include "dalle/layers/sparse_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "dalle/layers/bf16_product.h"
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
constexpr Problem kProblems[] = {{{5, 3}, 2, 3, 8}, {{32, 8}, 2, 3, 32}, {{7, 8}, 2, 1, 64}, {{40, 9}, 1, 2, 20}};

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

// Whatever this processor takes by itself; no dropout and some.
TEST(SparseAttention, OwnAndOneDnnsTilesAgree) {
  if (!has_bf16_products()) GTEST_SKIP() << "this processor has no AVX-512 bf16";
  using detail::AttentionTiles;
  for (const auto& p : kProblems) {
    const auto dropout = attention_dropout(
        {.seed = 5, .positions = std::vector<int64_t>(static_cast<size_t>(p.batch), 3), .attention_rate = 0.3}, 1);
    for (const auto kind : kKinds) {
      const auto plan = plan_of(kind, p.layout);
      for (const auto& weights_dropped : {AttentionDropout{}, dropout}) {
        const Result exact =
            run(packed(p, at::kDouble),
                dense_attention(mask_to_bias(attention_mask(kind, p.layout), at::kDouble), weights_dropped));
        const auto parts = packed(p, at::kBFloat16).permute({2, 0, 3, 1, 4}).unbind(0);
        const auto exact_parts = exact.grad.permute({2, 0, 3, 1, 4}).unbind(0);
        for (const auto tiles : {AttentionTiles::kOneDnn, AttentionTiles::kOwn}) {
          const auto forward = detail::attend_blocks(parts[0], parts[1], parts[2], *plan, weights_dropped, tiles);
          const Tensor out = forward.out_BLHK.transpose(1, 2);
          const auto grads = detail::attend_blocks_backward(random_tensor(7, out.sizes()).to(at::kBFloat16), parts[0],
                                                            parts[1], parts[2], forward, *plan, weights_dropped, tiles);
          EXPECT_LT(error(out, exact.out), 1e-2) << enum_name(kind) << " " << static_cast<int>(tiles);
          EXPECT_LT(error(grads.q_BHLK, exact_parts[0]), 1e-2) << enum_name(kind) << " " << static_cast<int>(tiles);
          EXPECT_LT(error(grads.k_BHLK, exact_parts[1]), 1e-2) << enum_name(kind) << " " << static_cast<int>(tiles);
          EXPECT_LT(error(grads.v_BHLK, exact_parts[2]), 1e-2) << enum_name(kind) << " " << static_cast<int>(tiles);
        }
      }
    }
  }
}

TEST(SparseAttention, NotANumberIsNotHidden) {
  const Problem& p = kProblems[1];
  const auto plan = plan_of(AttentionKind::kFull, p.layout);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    Tensor qkv = packed(p, type);
    qkv[0][20][0].fill_(std::numeric_limits<float>::quiet_NaN());
    const Result result = run(qkv, sparse_attention(plan));
    const auto parts = qkv.permute({2, 0, 3, 1, 4}).unbind(0);
    const Tensor normalizers = detail::attend_blocks(parts[0], parts[1], parts[2], *plan, {}).log_normalizer_BHL;
    EXPECT_TRUE(at::isnan(normalizers[0][0][20]).item<bool>()) << type;
    EXPECT_TRUE(at::isfinite(normalizers[0][0][19]).item<bool>()) << type;
    EXPECT_TRUE(at::isnan(result.out[0][0][20]).all().item<bool>()) << type;
    EXPECT_TRUE(at::isnan(result.grad[0][20][0]).all().item<bool>()) << type;
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

// Rows gathered, and rows that are read where they lie.
TEST(SparseAttention, ThreadsAndBatchChangeNoBit) {
  for (const auto& [index, kind] : {std::pair{0, AttentionKind::kColumn}, {1, AttentionKind::kFull}}) {
    const Problem& p = kProblems[index];
    const auto plan = plan_of(kind, p.layout);
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
}

// Rows are read where they lie if they are in order, but not as pairs from odd places.
TEST(SparseAttention, StridesOfItsInputsChangeNoBit) {
  const Problem& p = kProblems[1];
  const int64_t size = 3 * p.heads * p.head_dim, length = p.layout.length();
  const auto plan = plan_of(AttentionKind::kFull, p.layout);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Tensor inputs = packed(p, type), grad = random_tensor(7, {p.batch, length, p.heads, p.head_dim}).to(type);
    const auto in_rows_of = [&](int64_t numbers) {
      Tensor rows = at::zeros({p.batch, length, numbers}, inputs.options());
      rows.narrow(2, 0, size).copy_(inputs.flatten(2));
      const auto parts = rows.narrow(2, 0, size).unflatten(2, {3, p.heads, p.head_dim}).permute({2, 0, 3, 1, 4});
      Tensor grad_rows = at::zeros({p.batch, length, numbers}, inputs.options());
      grad_rows.narrow(2, 0, size / 3).copy_(grad.flatten(2));
      const Tensor grad_BHLK = grad_rows.narrow(2, 0, size / 3).unflatten(2, {p.heads, p.head_dim}).transpose(1, 2);
      EXPECT_EQ(grad_BHLK.stride(2), numbers);
      const auto forward = detail::attend_blocks(parts[0], parts[1], parts[2], *plan, {});
      const auto grads = detail::attend_blocks_backward(grad_BHLK, parts[0], parts[1], parts[2], forward, *plan, {});
      return std::vector<Tensor>{forward.out_BLHK, grads.q_BHLK, grads.k_BHLK, grads.v_BHLK};
    };
    const auto even = in_rows_of(size + 2), odd = in_rows_of(size + 1);
    for (size_t i = 0; i < even.size(); ++i) EXPECT_TRUE(bitwise_equal(odd[i], even[i])) << type << " " << i;
    // A sum's gradient has the same numbers for all positions in one place.
    const auto parts = inputs.permute({2, 0, 3, 1, 4}).unbind(0);
    const auto forward = detail::attend_blocks(parts[0], parts[1], parts[2], *plan, {});
    const Tensor expanded = grad.transpose(1, 2).narrow(2, 0, 1).expand({-1, -1, length, -1});
    const auto of = [&](const Tensor& grad_BHLK) {
      return detail::attend_blocks_backward(grad_BHLK, parts[0], parts[1], parts[2], forward, *plan, {}).q_BHLK;
    };
    EXPECT_EQ(expanded.stride(2), 0);
    EXPECT_TRUE(bitwise_equal(of(expanded), of(expanded.contiguous()))) << type;
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

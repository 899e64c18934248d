// Dense attention against the slow reference, and its receptive sets measured by gradient.
#include <gtest/gtest.h>

#include "dalle/core/str.h"
#include "dalle/layers/attention_mask.h"
#include "dalle/layers/transformer.h"
#include "support/finite_difference.h"
#include "support/reference_attention.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using testing::nonzero_rows;
using testing::reference_attention;

constexpr AttentionKind kKinds[] = {AttentionKind::kFull, AttentionKind::kRow, AttentionKind::kColumn,
                                    AttentionKind::kConv};

struct Qkv {
  Qkv(at::IntArrayRef shape, at::ScalarType dtype, double scale = 1.5)
      : q((at::randn(shape) * scale).to(dtype)),
        k((at::randn(shape) * scale).to(dtype)),
        v(at::randn(shape).to(dtype)) {}
  Tensor q, k, v;
};

/// A random mask in which every row sees itself.
Tensor random_mask(int64_t length) { return at::rand({length, length}).lt(0.4).logical_or(at::eye(length, at::kBool)); }

TEST(Attention, EqualsTheReferenceOnAllSmallShapes) {
  at::manual_seed(1);
  for (int64_t length = 1; length <= 9; ++length) {
    for (const int64_t heads : {1, 3}) {
      for (const int64_t width : {1, 2, 8, 16}) {
        const Tensor mask = random_mask(length);
        for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, std::pair{at::kDouble, 1e-12}}) {
          const Qkv x({2, heads, length, width}, dtype);
          const Tensor out = dense_attention(mask_to_bias(mask, dtype))(x.q, x.k, x.v);
          EXPECT_EQ(out.scalar_type(), dtype);
          ASSERT_TRUE(close_to(out, reference_attention(x.q, x.k, x.v, mask), tolerance))
              << "length " << length << " heads " << heads << " width " << width << " " << dtype;
        }
      }
    }
  }
}

TEST(Attention, EqualsTheReferenceForEveryKind) {
  at::manual_seed(2);
  for (const AttentionKind kind : kKinds) {
    const SequenceLayout layout{7, 6};
    const Tensor mask = attention_mask(kind, layout, {.kernel = 5});
    const Qkv x({2, 2, layout.length(), 8}, at::kFloat);
    const Tensor expected = reference_attention(x.q, x.k, x.v, mask);
    const Tensor out = dense_attention(mask_to_bias(mask, at::kFloat))(x.q, x.k, x.v);
    EXPECT_TRUE(close_to(out, expected, 1e-5)) << enum_name(kind);
    // bf16 operands: 8 bits of mantissa in q, k, v, the weights and the result.
    const Tensor half = dense_attention(mask_to_bias(mask, at::kBFloat16))(x.q.to(at::kBFloat16), x.k.to(at::kBFloat16),
                                                                           x.v.to(at::kBFloat16));
    EXPECT_EQ(half.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(close_to(half, expected, 3e-2)) << enum_name(kind);
  }
}

TEST(Attention, WithoutAMaskEverySlotSeesAll) {
  at::manual_seed(3);
  const Qkv x({1, 2, 6, 4}, at::kFloat);
  EXPECT_TRUE(close_to(dense_attention({})(x.q, x.k, x.v),
                       reference_attention(x.q, x.k, x.v, at::ones({6, 6}, at::kBool)), 1e-5));
}

TEST(Attention, HugeScoresDoNotOverflow) {
  at::manual_seed(4);
  const Qkv x({1, 1, 5, 4}, at::kFloat, 300);
  const Tensor out = dense_attention(mask_to_bias(causal_mask(5), at::kFloat))(x.q, x.k, x.v);
  EXPECT_TRUE(at::isfinite(out).all().item<bool>());
}

TEST(Attention, GradientsEqualFiniteDifferences) {
  at::manual_seed(5);
  const SequenceLayout layout{2, 2};
  for (const AttentionKind kind : kKinds) {
    const auto attend = dense_attention(mask_to_bias(attention_mask(kind, layout, {.kernel = 3}), at::kDouble));
    const Qkv x({1, 2, layout.length(), 3}, at::kDouble);
    const Tensor weight = at::randn(x.q.sizes(), at::kDouble);
    const auto loss = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
      return (attend(q, k, v) * weight).sum();
    };
    EXPECT_TRUE(testing::gradient_is_right([&](const Tensor& q) { return loss(q, x.k, x.v); }, x.q)) << enum_name(kind);
    EXPECT_TRUE(testing::gradient_is_right([&](const Tensor& k) { return loss(x.q, k, x.v); }, x.k)) << enum_name(kind);
    EXPECT_TRUE(testing::gradient_is_right([&](const Tensor& v) { return loss(x.q, x.k, v); }, x.v)) << enum_name(kind);
  }
}

struct OneAttention : Module {
  OneAttention() {
    materialize(at::kCPU);
    initialize(11);
  }
  Attention attn{*this, "attn", {.dim = 12, .num_heads = 3}};
};

TEST(Attention, ReceptiveSetsEqualTheMask) {
  at::manual_seed(6);
  OneAttention layer;
  for (const AttentionKind kind : kKinds) {
    for (const ConvMaskEdge edge : {ConvMaskEdge::kRaster, ConvMaskEdge::kClamp, ConvMaskEdge::kCyclic}) {
      const SequenceLayout layout{3, 5};
      const Tensor mask = attention_mask(kind, layout, {5, edge});
      const auto attend = dense_attention(mask_to_bias(mask, at::kFloat));
      const Tensor x = at::randn({1, layout.length(), 12}).requires_grad_();
      const Tensor out = layer.attn.forward(x, attend);
      Tensor measured = at::zeros_like(mask);
      for (int64_t query = 0; query < layout.length(); ++query) {
        x.mutable_grad() = Tensor();
        (out[0][query] * at::randn({12})).sum().backward({}, /*keep_graph=*/true);
        measured[query].copy_(nonzero_rows(x.grad()[0]));
      }
      EXPECT_TRUE(at::equal(measured, mask)) << enum_name(kind) << " " << enum_name(edge);
    }
  }
}

TEST(Attention, ChangingAnUnseenSlotChangesNoBit) {
  at::manual_seed(7);
  OneAttention layer;
  const SequenceLayout layout{3, 4};
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const AttentionKind kind : kKinds) {
      const Tensor mask = attention_mask(kind, layout, {.kernel = 3});
      const auto attend = dense_attention(mask_to_bias(mask, dtype));
      const Tensor x = at::randn({2, layout.length(), 12}).to(dtype), before = layer.attn.forward(x, attend);
      for (int64_t slot = 0; slot < layout.length(); ++slot) {
        Tensor changed = x.clone();
        changed.select(1, slot).add_(at::randn({12}), 30);
        const Tensor differs = layer.attn.forward(changed, attend).ne(before).any(2);  // [B, L]
        const Tensor may_differ = mask.select(1, slot).unsqueeze(0).expand({2, layout.length()});
        EXPECT_EQ(differs.logical_and(may_differ.logical_not()).sum().item<int64_t>(), 0)
            << enum_name(kind) << " slot " << slot << " " << dtype;
        if (dtype == at::kFloat) {
          EXPECT_TRUE(at::equal(differs, may_differ)) << enum_name(kind) << " slot " << slot;
        }
      }
    }
  }
}

}  // namespace
}  // namespace dalle::layers

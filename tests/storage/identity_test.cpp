#include "dalle/storage/identity.h"

#include "storage/scratch.h"

namespace dalle::storage {
namespace {

TEST(Identity, DoesNotDependOnOrderLayoutOrGradients) {
  const Tensor w = random_tensor(1, {4, 3, 2, 2}), b = random_tensor(2, {4});
  const std::string identity = model_identity("dim: 4", {{"w", w}, {"b", b}});
  EXPECT_EQ(identity.size(), 32u);
  EXPECT_EQ(model_identity("dim: 4", {{"b", b}, {"w", w}}), identity);
  EXPECT_EQ(model_identity("dim: 4", {{"b", b}, {"w", w.contiguous(at::MemoryFormat::ChannelsLast)}}), identity);
  EXPECT_EQ(model_identity("dim: 4", {{"b", b}, {"w", w.clone().set_requires_grad(true)}}), identity);
}

TEST(Identity, ChangesWithEveryPart) {
  const Tensor w = random_tensor(1, {4, 3});
  const std::string identity = model_identity("dim: 4", {{"w", w}});
  Tensor other = w.clone();
  other.view(-1)[5] += 1e-6;
  EXPECT_NE(model_identity("dim: 5", {{"w", w}}), identity);
  EXPECT_NE(model_identity("dim: 4", {{"v", w}}), identity);
  EXPECT_NE(model_identity("dim: 4", {{"w", other}}), identity);
  EXPECT_NE(model_identity("dim: 4", {{"w", w.reshape({3, 4})}}), identity);
  EXPECT_NE(model_identity("dim: 4", {{"w", w.view(at::kInt)}}), identity);
  EXPECT_NE(model_identity("dim: 4", {{"w", w}, {"empty", at::zeros({0})}}), identity);
  // The boundary between the architecture and a name counts.
  EXPECT_NE(model_identity("ab", {{"c", w}}), model_identity("a", {{"bc", w}}));
}

TEST(Identity, OfBytesIsTheirChecksum) {
  EXPECT_EQ(bytes_identity("abc"), bytes_identity(std::string("abc")));
  EXPECT_NE(bytes_identity("abc"), bytes_identity("abd"));
}

}  // namespace
}  // namespace dalle::storage

// Winograd's linear maps against their matrices (Lavin and Gray, arXiv 1509.09308, section 4.1) in f64, on whole numbers that
// bf16 holds exactly.
#include "dalle/layers/winograd_transform.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "dalle/layers/bf16_product.h"
#include "support/random_tensor.h"

namespace dalle::layers::detail {
namespace {

using dalle::testing::random_tensor;

constexpr int64_t kBatch = 2, kHeight = 4, kWidth = 6, kTiles = kBatch * kHeight / 2 * kWidth / 2;

class WinogradTransform : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_bf16_products()) GTEST_SKIP() << "no AVX-512 bf16 here";
  }
};

Tensor matrix(int64_t rows, const std::vector<double>& values) {
  return at::tensor(values, at::kDouble).view({rows, -1});
}
const Tensor& input_matrix() {
  static const Tensor bt = matrix(4, {1, 0, -1, 0, 0, 1, 1, 0, 0, -1, 1, 0, 0, 1, 0, -1});
  return bt;
}
const Tensor& kernel_matrix() {
  static const Tensor g = matrix(4, {1, 0, 0, .5, .5, .5, .5, -.5, .5, 0, 0, 1});
  return g;
}
const Tensor& output_matrix() {
  static const Tensor at = matrix(2, {1, 1, 1, 0, 0, 1, -1, -1});
  return at;
}

// m x m^T for the last two dimensions.
Tensor both_sides(const Tensor& m, const Tensor& x) { return at::matmul(at::matmul(m, x), m.t()); }

Tensor whole(uint64_t seed, at::IntArrayRef sizes, at::ScalarType type) {
  return (random_tensor(seed, sizes) * 2).round().clamp(-3, 3).to(type).contiguous();
}

const uint16_t* bits(const Tensor& x) { return static_cast<const uint16_t*>(x.const_data_ptr()); }
uint16_t* mutable_bits(const Tensor& x) { return static_cast<uint16_t*>(x.mutable_data_ptr()); }

// Room for points of [rows, columns], and a view of them, [16, rows, columns].
struct Points {
  Points(int64_t rows, int64_t columns, at::ScalarType type)
      : memory(at::full({kWinogradPoints * winograd_stride(rows * columns)}, 77, type)),
        view(memory.as_strided({kWinogradPoints, rows, columns}, {winograd_stride(rows * columns), columns, 1})) {}
  Tensor exact() const { return view.to(at::kDouble); }
  Tensor memory, view;
};

// Right-hand sides [rows / 2, columns, 2] of each point as [16, rows, columns].
Tensor unpaired(const Tensor& points, int64_t rows, int64_t columns) {
  return points.contiguous()
      .view({kWinogradPoints, rows / 2, columns, 2})
      .transpose(2, 3)
      .reshape({kWinogradPoints, rows, columns});
}

struct Pictures {
  explicit Pictures(int64_t channels)
      : pixels(whole(1, {kBatch, kHeight, kWidth, channels}, at::kBFloat16)),
        zeros(static_cast<size_t>(channels)),
        tiled{bits(pixels), zeros.data(), kBatch, kHeight, kWidth, channels} {}
  Tensor pixels;
  std::vector<uint16_t> zeros;
  TiledPictures tiled;

  // [tiles, C, size, size]: the pixels of each tile, with `margin` around it.
  Tensor tiles(int64_t margin) const {
    const int64_t size = 2 + 2 * margin;
    const Tensor padded =
        at::constant_pad_nd(pixels.to(at::kDouble).permute({0, 3, 1, 2}), {margin, margin, margin, margin});
    return padded.unfold(2, size, 2)
        .unfold(3, size, 2)
        .permute({0, 2, 3, 1, 4, 5})
        .reshape({-1, pixels.size(3), size, size});
  }
  // The 16 points of all tiles and channels, [16, tiles, C].
  Tensor input_points() const {
    return both_sides(input_matrix(), tiles(1)).permute({2, 3, 0, 1}).reshape({kWinogradPoints, kTiles, -1});
  }
};

TEST_F(WinogradTransform, OfInputs) {
  const Pictures pictures(48);
  const Tensor expected = pictures.input_points();
  Points points(8, 64, at::kBFloat16);
  winograd_input(pictures.tiled, 3, 8, mutable_bits(points.memory), 64);
  EXPECT_TRUE(at::equal(points.exact().narrow(2, 0, 48), expected.narrow(1, 3, 8)));
  EXPECT_TRUE((points.view.narrow(2, 48, 16) == 77).all().item<bool>()) << "wrote past the channels";

  Points pairs(6, 32, at::kBFloat16);
  winograd_input_pairs(pictures.tiled, 2, 6, 16, 32, mutable_bits(pairs.memory));
  EXPECT_TRUE(at::equal(unpaired(pairs.exact(), 6, 32), expected.narrow(1, 2, 6).narrow(2, 16, 32)));
}

TEST_F(WinogradTransform, TilesPastTheLastAreZeros) {
  const Pictures pictures(16);
  Points points(2, 16, at::kBFloat16);
  winograd_input(pictures.tiled, kTiles - 1, 2, mutable_bits(points.memory), 16);
  EXPECT_TRUE(at::equal(points.exact().select(1, 0), pictures.input_points().select(1, kTiles - 1)));
  EXPECT_TRUE((points.view.select(1, 1) == 0).all().item<bool>());
}

TEST_F(WinogradTransform, OfGradients) {
  const Pictures pictures(32);
  const Tensor expected =
      both_sides(output_matrix().t(), pictures.tiles(0)).permute({2, 3, 1, 0}).reshape({kWinogradPoints, 32, kTiles});
  constexpr int64_t kCount = 32;  // of 12 tiles: the rest are zeros
  Points points(32, kCount, at::kBFloat16);
  Tensor sums = at::full({32}, 5.0f);
  for (const int64_t channel : {0, 16}) {
    winograd_gradient_transposed(pictures.tiled, 0, kCount, channel, mutable_bits(points.memory) + channel * kCount,
                                 kCount, sums.mutable_data_ptr<float>() + channel);
  }
  EXPECT_TRUE(at::equal(points.exact().narrow(2, 0, kTiles), expected));
  EXPECT_TRUE((points.view.narrow(2, kTiles, kCount - kTiles) == 0).all().item<bool>());
  EXPECT_TRUE(at::equal(sums.to(at::kDouble), 5 + pictures.pixels.to(at::kDouble).sum({0, 1, 2})));
}

TEST_F(WinogradTransform, OfKernels) {
  constexpr int64_t kOut = 64, kIn = 96;
  const Tensor w_OHWI = 4 * whole(2, {kOut, 3, 3, kIn}, at::kFloat);
  const auto points_of = [](const Tensor& kernels) {  // [O, I, 3, 3] -> [16, O, I], halved
    return 0.5 *
           both_sides(kernel_matrix(), kernels).permute({2, 3, 0, 1}).reshape({kWinogradPoints, kernels.size(0), -1});
  };
  const Tensor w_OIHW = w_OHWI.to(at::kDouble).permute({0, 3, 1, 2});
  Points forward(kIn, 32, at::kBFloat16);
  winograd_kernel(w_OHWI.const_data_ptr<float>(), kIn, 16, 32, 0.5f, mutable_bits(forward.memory));
  EXPECT_TRUE(at::equal(unpaired(forward.exact(), kIn, 32), points_of(w_OIHW).narrow(1, 16, 32).transpose(1, 2)));

  Points turned(kOut, 48, at::kBFloat16);
  winograd_turned_kernel(w_OHWI.const_data_ptr<float>(), kOut, kIn, 32, 48, 0.5f, mutable_bits(turned.memory));
  EXPECT_TRUE(at::equal(unpaired(turned.exact(), kOut, 48), points_of(w_OIHW.flip({2, 3})).narrow(2, 32, 48)));
}

TEST_F(WinogradTransform, ToOutputs) {
  constexpr int64_t kChannels = 48, kColumns = 32, kFirst = 16;
  Points points(kTiles, kColumns, at::kFloat);
  points.view.copy_(whole(3, points.view.sizes(), at::kFloat));
  const Tensor out = at::full({kBatch, kHeight, kWidth, kChannels}, 77, at::kBFloat16);
  const Tensor bias = whole(4, {kChannels}, at::kFloat);
  winograd_output(points.memory.const_data_ptr<float>(), 0, kTiles, kFirst, kColumns,
                  {.pixels = mutable_bits(out),
                   .height = kHeight,
                   .width = kWidth,
                   .channels = kChannels,
                   .bias = bias.const_data_ptr<float>()});
  const Tensor tiles = both_sides(output_matrix(), points.exact().view({4, 4, kTiles, kColumns}).permute({2, 3, 0, 1}));
  const Tensor expected = tiles.view({kBatch, kHeight / 2, kWidth / 2, kColumns, 2, 2})
                              .permute({0, 1, 4, 2, 5, 3})
                              .reshape({kBatch, kHeight, kWidth, kColumns}) +
                          bias.narrow(0, kFirst, kColumns);
  EXPECT_TRUE(at::equal(out.narrow(3, kFirst, kColumns).to(at::kDouble), expected));
  EXPECT_TRUE((out.narrow(3, 0, kFirst) == 77).all().item<bool>());
}

TEST_F(WinogradTransform, ToKernelGradients) {
  constexpr int64_t kRows = 5, kColumns = 16, kIn = 48;
  Points points(kRows, kColumns, at::kFloat);
  points.view.copy_(4 * whole(5, points.view.sizes(), at::kFloat));
  Tensor out = at::full({kRows, 3, 3, kIn}, 77.0f);
  winograd_kernel_gradient(points.memory.const_data_ptr<float>(), kRows, kColumns, out.mutable_data_ptr<float>() + 32,
                           kIn);
  const Tensor expected =
      both_sides(kernel_matrix().t(), points.exact().view({4, 4, kRows, kColumns}).permute({2, 3, 0, 1}));
  EXPECT_TRUE(at::equal(out.narrow(3, 32, kColumns).to(at::kDouble), expected.permute({0, 2, 3, 1})));
  EXPECT_TRUE((out.narrow(3, 0, 32) == 77).all().item<bool>());
}

}  // namespace
}  // namespace dalle::layers::detail

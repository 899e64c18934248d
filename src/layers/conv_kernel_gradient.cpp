// The kernel's gradient of a convolution, dw[o, ky, kx, i] = sum over positions p of grad[p, o] x[p + (ky, kx), i], as
// products over stretches of positions. A stretch is some rows of one picture. For each of them the gradient is packed once
// (transposed for oneDNN's tiles) and the input once for each kx, with the rows above and below it, so that a step of ky is
// an offset.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "dalle/core/scratch.h"
#include "dalle/layers/bf16_pack.h"
#include "dalle/layers/bf16_product.h"
#include "dalle/layers/tile_product.h"

namespace dalle::layers {
namespace {

constexpr int64_t kTileRows = 64;
constexpr int64_t kDepth = 512;            // positions of one kernel call
constexpr int64_t kPointwiseDepth = 2048;  // of a kernel of one pixel, which has no rows above and below to pack again
constexpr int64_t kChunkDepth = 1024;      // positions packed before their products are summed up

constexpr int64_t kTurningCost = 20;  // of an element of the result, in packed elements

// Columns of the result (kx, i) in tiles of the widths that AMX's kernels take.
int64_t tile_width(int64_t columns) {
  for (const int64_t width : {64, 48, 32}) {
    if (columns % width == 0) return width;
  }
  return detail::kPackColumns;
}

class KernelGradient {
 public:
  KernelGradient(const Tensor& grad_BHWO, const Tensor& x_BHWI, int64_t kernel, const Tensor& sum = {})
      : grad_(bits(grad_BHWO)),
        x_(bits(x_BHWI)),
        pictures_(x_BHWI.size(0)),
        height_(x_BHWI.size(1)),
        width_(x_BHWI.size(2)),
        in_(x_BHWI.size(3)),
        out_(grad_BHWO.size(3)),
        kernel_(kernel),
        columns_(kernel * in_),
        tile_width_(tile_width(columns_)),
        pack_width_(std::gcd(tile_width_, in_)),
        stretch_rows_(rows_of_a_stretch()),
        stretches_(pictures_ * (height_ / stretch_rows_)),
        chunk_(std::clamp<int64_t>(kChunkDepth / depth(), 1, stretches_)),
        adds_(sum.defined()),
        own_tiles_(detail::tiles() == detail::Tiles::kOwn),
        gradient_(adds_ ? sum : at::empty({out_, kernel_, kernel_, in_}, x_BHWI.options().dtype(at::kFloat))),
        sums_(at::empty({stretches_, out_}, gradient_.options())),
        packed_grad_(scratch<uint16_t>(chunk_ * out_ * depth())),
        packed_x_(scratch<uint16_t>(chunk_ * columns_ * packed_depth())) {}

  /// [O, kernel, kernel, I].
  Tensor run() {
    for (int64_t first = 0; first < stretches_; first += chunk_) {
      const int64_t count = std::min(chunk_, stretches_ - first);
      pack(first, count);
      multiply(count, /*is_first=*/first == 0 && !adds_);
    }
    return gradient_;
  }

  /// After run(): the sum of grad over all positions, [O].
  Tensor bias() const { return sums_.sum(0); }

 private:
  static const uint16_t* bits(const Tensor& x) {
    return reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  }

  // The most rows that divide the height and make a depth within the limit that is a multiple of 32.
  int64_t rows_of_a_stretch() const {
    int64_t best = height_;
    for (int64_t rows = height_; rows >= 1; --rows) {
      if (height_ % rows != 0 || rows * width_ % detail::kPackDepth != 0) continue;
      best = rows;
      if (rows * width_ <= (kernel_ == 1 ? kPointwiseDepth : kDepth)) break;
    }
    return best;
  }

  int64_t margin() const { return (kernel_ - 1) / 2; }
  int64_t depth() const { return stretch_rows_ * width_; }
  int64_t packed_depth() const { return (stretch_rows_ + kernel_ - 1) * width_; }
  uint16_t* packed_grad(int64_t slot) { return packed_grad_.get() + slot * out_ * depth(); }
  // Tiles [packed_depth / 2, tile width, 2] one after the other.
  uint16_t* packed_x(int64_t slot, int64_t column) {
    return packed_x_.get() + (slot * columns_ + column) * packed_depth();
  }

  void pack(int64_t first, int64_t count) {
    const int64_t groups = columns_ / pack_width_;
    at::parallel_for(0, count * (1 + groups), 4, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t slot = task / (1 + groups), group = task % (1 + groups) - 1;
        const int64_t stretches_a_picture = height_ / stretch_rows_;
        const int64_t picture = (first + slot) / stretches_a_picture;
        const int64_t row = (first + slot) % stretches_a_picture * stretch_rows_;
        if (group < 0) {
          const uint16_t* grad = grad_ + (picture * height_ + row) * width_ * out_;
          float* sums = sums_.mutable_data_ptr<float>() + (first + slot) * out_;
          if (own_tiles_) {
            detail::pack_groups(grad, out_, depth(), out_, packed_grad(slot), sums);
          } else {
            detail::transpose(grad, out_, depth(), out_, packed_grad(slot), depth(), sums);
          }
        } else {
          pack_x(slot, picture, row, group * pack_width_);
        }
      }
    });
  }

  // Some columns of a tile: one kx, some channels, all rows of the stretch and its margins.
  void pack_x(int64_t slot, int64_t picture, int64_t row, int64_t column) {
    const int64_t shift = column / in_ - margin(), in_tile = column % tile_width_;
    uint16_t* out = packed_x(slot, column - in_tile) + 2 * in_tile;
    for (int64_t y = row - margin(); y < row + stretch_rows_ + margin(); ++y, out += width_ * tile_width_) {
      pack_line(y >= 0 && y < height_ ? x_ + (picture * height_ + y) * width_ * in_ + column % in_ : nullptr, shift,
                out);
    }
  }

  // Pairs of a picture's row moved by `shift`, zeros where it ends; all zeros for null.
  void pack_line(const uint16_t* line, int64_t shift, uint16_t* out) const {
    const auto pixel = [&](int64_t w) { return line == nullptr || w < 0 || w >= width_ ? nullptr : line + w * in_; };
    const int64_t pairs = line == nullptr ? 0 : (width_ - std::abs(shift)) / 2,
                  before = shift < 0 ? (1 - shift) / 2 : 0;
    for (int64_t p = 0; p < width_ / 2; ++p) {
      if (p == before && pairs > 0) {
        detail::pack_rows(line + (2 * p + shift) * in_, in_, 2 * pairs, pack_width_, out + 2 * p * tile_width_,
                          tile_width_);
        p += pairs - 1;
      } else {
        detail::pack_edge(pixel(2 * p + shift), pixel(2 * p + 1 + shift), pack_width_, out + 2 * p * tile_width_);
      }
    }
  }

  // gradient += sum over the packed stretches. The tile of the result stays in the cache while its stretches go by.
  void multiply(int64_t count, bool is_first) {
    const int64_t column_tiles = columns_ / tile_width_;
    const int64_t row_tiles = (out_ + kTileRows - 1) / kTileRows;
    // The larger operand passes by once, the smaller one for each of its tiles.
    const bool rows_are_outer = out_ > columns_;
    const int64_t inner_tiles = rows_are_outer ? column_tiles * kernel_ : row_tiles;
    at::parallel_for(0, column_tiles * kernel_ * row_tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t outer = task / inner_tiles, inner = task % inner_tiles;
        const int64_t row = (rows_are_outer ? outer : inner) * kTileRows;
        const int64_t column = (rows_are_outer ? inner : outer) / kernel_ * tile_width_;
        const int64_t ky = (rows_are_outer ? inner : outer) % kernel_;
        float* sum = gradient_.mutable_data_ptr<float>() + (row * kernel_ + ky) * columns_ + column;
        for (int64_t slot = 0; slot < count; ++slot) {
          add_tile(packed_grad(slot) + row * depth(), std::min(kTileRows, out_ - row),
                   packed_x(slot, column) + ky * width_ * tile_width_, sum, /*adds=*/!is_first || slot > 0);
        }
      }
      detail::release_tiles();
    });
  }

  // `rows` rows of a packed gradient times a tile of packed x.
  void add_tile(const uint16_t* grad, int64_t rows, const uint16_t* x, float* sum, bool adds) const {
    const int64_t stride = kernel_ * columns_;
    if (!own_tiles_) {
      return detail::tile_product(rows, tile_width_, depth(), grad, depth(), x, sum, stride, adds);
    }
    constexpr int64_t kGroup = detail::kPackColumns;
    for (int64_t group = 0; group < rows; group += kGroup, sum += kGroup * stride) {
      detail::own_tile_product(kGroup, tile_width_, depth(), {grad + group * depth(), /*row=*/2, /*pair=*/2 * kGroup},
                               x, adds ? detail::TileAddend{sum, stride} : detail::TileAddend{}, {sum, stride});
    }
  }

  const uint16_t* grad_;
  const uint16_t* x_;
  int64_t pictures_, height_, width_, in_, out_, kernel_, columns_, tile_width_, pack_width_;
  int64_t stretch_rows_, stretches_, chunk_;
  bool adds_, own_tiles_;
  Tensor gradient_, sums_;
  Scratch<uint16_t> packed_grad_, packed_x_;
};

Tensor rows_of_channels(const Tensor& x) { return x.permute({0, 2, 3, 1}).contiguous(); }

}  // namespace

bool fits_conv_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW) {
  const auto fits = [](const Tensor& x) {
    return x.is_cpu() && x.scalar_type() == at::kBFloat16 && x.dim() == 4 && x.size(0) > 0 &&
           x.size(1) % detail::kPackColumns == 0 && x.size(3) % 2 == 0 && x.size(2) * x.size(3) > 0 &&
           x.size(2) * x.size(3) % detail::kPackDepth == 0;
  };
  return has_bf16_products() && fits(grad_BOHW) && fits(x_BIHW);
}

KernelGradients conv_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW, int64_t kernel) {
  TORCH_CHECK_VALUE(fits_conv_kernel_gradients(grad_BOHW, x_BIHW) && kernel % 2 == 1 &&
                        grad_BOHW.size(0) == x_BIHW.size(0) && grad_BOHW.size(2) == x_BIHW.size(2) &&
                        grad_BOHW.size(3) == x_BIHW.size(3),
                    "[conv kernel gradient] gradient ", grad_BOHW.sizes(), " and input ", x_BIHW.sizes(),
                    " are not of types and sizes that it takes");
  Tensor grad_BHWO = rows_of_channels(grad_BOHW), x_BHWI = rows_of_channels(x_BIHW);
  if (kernel == 1) {  // pictures do not matter then
    grad_BHWO = grad_BHWO.flatten(0, 1).unsqueeze(0);
    x_BHWI = x_BHWI.flatten(0, 1).unsqueeze(0);
  }
  // One of the two is packed `kernel` times: better the one with fewer channels, unless the kernel itself is what is
  // large. With the roles exchanged the sum runs over positions of x, which turns the kernel around.
  const int64_t positions = grad_BOHW.numel() / grad_BOHW.size(1), in = x_BIHW.size(1), out = grad_BOHW.size(1);
  if (kernel > 1 && (in - out) * positions > kTurningCost * in * out) {
    const Tensor turned = KernelGradient(x_BHWI, grad_BHWO, kernel).run().flip({1, 2}).permute({3, 0, 1, 2});
    return {turned.contiguous(at::MemoryFormat::ChannelsLast),
            at::sum(grad_BHWO, {0, 1, 2}, /*keepdim=*/false, at::kFloat)};
  }
  KernelGradient gradient(grad_BHWO, x_BHWI, kernel);
  const Tensor w = gradient.run().permute({0, 3, 1, 2});
  return {w, gradient.bias()};
}

bool fits_linear_gradients(const Tensor& grad_NO, const Tensor& x_NI) {
  const auto fits = [](const Tensor& x) {
    return x.is_cpu() && x.scalar_type() == at::kBFloat16 && x.dim() == 2 && x.is_contiguous() &&
           x.size(1) % detail::kPackColumns == 0 && x.size(0) % detail::kPackDepth == 0 && x.numel() > 0;
  };
  return has_bf16_products() && fits(grad_NO) && fits(x_NI);
}

KernelGradients linear_gradients(const Tensor& grad_NO, const Tensor& x_NI, const Tensor& sum_OI) {
  const int64_t out = grad_NO.size(1), in = x_NI.size(1);
  TORCH_CHECK_VALUE(fits_linear_gradients(grad_NO, x_NI) && grad_NO.size(0) == x_NI.size(0) &&
                        (!sum_OI.defined() || (sum_OI.is_contiguous() && sum_OI.scalar_type() == at::kFloat &&
                                               sum_OI.sizes() == at::IntArrayRef({out, in}))),
                    "[linear gradients] gradient ", grad_NO.sizes(), " and input ", x_NI.sizes(),
                    " are not of types and sizes that it takes");
  const auto as_picture = [](const Tensor& rows) { return rows.view({1, rows.size(0) / 32, 32, rows.size(1)}); };
  KernelGradient gradient(as_picture(grad_NO), as_picture(x_NI), /*kernel=*/1,
                          sum_OI.defined() ? sum_OI.view({out, 1, 1, in}) : Tensor());
  const Tensor w = gradient.run().view({out, in});
  return {w, gradient.bias()};
}

}  // namespace dalle::layers

// The kernel's gradient of a convolution, dw[o, ky, kx, i] = sum over positions p of grad[p, o] x[p + (ky, kx), i], as
// products over stretches of positions. A stretch is some rows of one picture. For each of them the gradient is packed
// (transposed for oneDNN's tiles), and the input for each kx, with the rows above and below it, so that a step of ky is an
// offset. The smaller of the two is packed as a whole, the larger one tile by tile just before its products, so that it
// never leaves the second cache.
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
        packed_(scratch<uint16_t>(chunk_ * (rows_are_outer() ? columns_ * packed_depth() : out_ * depth()))) {}

  /// [O, kernel, kernel, I].
  Tensor run() {
    for (int64_t first = 0; first < stretches_; first += chunk_) {
      const int64_t count = std::min(chunk_, stretches_ - first);
      pack_inner(first, count);
      multiply(first, count, /*adds=*/first > 0 || adds_);
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
  // The larger operand passes by once, the smaller one for each of its tiles.
  bool rows_are_outer() const { return out_ > columns_; }
  int64_t row_tiles() const { return (out_ + kTileRows - 1) / kTileRows; }
  int64_t column_tiles() const { return columns_ / tile_width_; }
  int64_t outer_tiles() const { return rows_are_outer() ? row_tiles() : column_tiles(); }
  int64_t height_of(int64_t row_tile) const { return std::min(kTileRows, out_ - row_tile * kTileRows); }

  const uint16_t* grad_of(int64_t stretch) const { return grad_ + stretch * depth() * out_; }
  const uint16_t* x_of(int64_t stretch) const { return x_ + stretch * depth() * in_; }

  // Rows of the result, transposed or in groups of pairs.
  void pack_row_tile(int64_t stretch, int64_t tile, uint16_t* to, float* sums) const {
    const uint16_t* grad = grad_of(stretch) + tile * kTileRows;
    if (own_tiles_) return detail::pack_groups(grad, out_, depth(), height_of(tile), to, sums);
    detail::transpose(grad, out_, depth(), height_of(tile), to, depth(), sums);
  }

  // Columns of the result as pairs [packed_depth / 2, tile width, 2].
  void pack_column_tile(int64_t stretch, int64_t tile, uint16_t* to) const {
    for (int64_t c = 0; c < tile_width_; c += pack_width_) pack_x(stretch, tile * tile_width_ + c, to + 2 * c);
  }

  float* sums_of(int64_t stretch, int64_t tile) {
    return sums_.mutable_data_ptr<float>() + stretch * out_ + tile * kTileRows;
  }

  // The smaller operand, tile after tile.
  uint16_t* inner(int64_t slot, int64_t tile) {
    return packed_.get() + (rows_are_outer() ? (slot * columns_ + tile * tile_width_) * packed_depth()
                                             : (slot * out_ + tile * kTileRows) * depth());
  }

  void pack_inner(int64_t first, int64_t count) {
    const int64_t tiles = rows_are_outer() ? column_tiles() : row_tiles();
    at::parallel_for(0, count * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t slot = task / tiles, tile = task % tiles, stretch = first + slot;
        if (rows_are_outer()) {
          pack_column_tile(stretch, tile, inner(slot, tile));
        } else {
          pack_row_tile(stretch, tile, inner(slot, tile), sums_of(stretch, tile));
        }
      }
    });
  }

  // Some columns of a tile: one kx, some channels, all rows of the stretch and its margins.
  void pack_x(int64_t stretch, int64_t column, uint16_t* out) const {
    const int64_t stretches_a_picture = height_ / stretch_rows_, picture = stretch / stretches_a_picture;
    const int64_t row = stretch % stretches_a_picture * stretch_rows_, shift = column / in_ - margin();
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

  // gradient (+)= sum over `count` stretches. The tile of the result stays in the cache while its stretches go by.
  void multiply(int64_t first, int64_t count, bool adds) {
    const int64_t inner_tiles = (rows_are_outer() ? column_tiles() : row_tiles()) * kernel_;
    // With many threads a tile of the larger operand may be packed by several of them.
    const int64_t threads = at::get_num_threads();
    const int64_t wanted = threads == 1 ? 1 : (4 * threads + outer_tiles() - 1) / outer_tiles();
    const int64_t part = (inner_tiles + wanted - 1) / wanted, parts = (inner_tiles + part - 1) / part;
    at::parallel_for(0, outer_tiles() * parts, 1, [&](int64_t begin, int64_t end) {
      const int64_t size = rows_are_outer() ? kTileRows * depth() : tile_width_ * packed_depth();
      const auto outer = scratch<uint16_t>(count * size);
      float unused[kTileRows];
      for (int64_t task = begin; task < end; ++task) {
        const int64_t tile = task / parts, from = task % parts * part;
        for (int64_t slot = 0; slot < count; ++slot) {
          uint16_t* to = outer.get() + slot * size;
          if (rows_are_outer()) {
            pack_row_tile(first + slot, tile, to, from == 0 ? sums_of(first + slot, tile) : unused);
          } else {
            pack_column_tile(first + slot, tile, to);
          }
        }
        for (int64_t i = from; i < std::min(inner_tiles, from + part); ++i) {
          for (int64_t slot = 0; slot < count; ++slot) {
            const uint16_t* packed = outer.get() + slot * size;
            // What comes after it, of the smaller operand; and of the larger one what is packed next.
            const bool is_last = slot + 1 == count;
            const uint16_t* next =
                is_last && i + 1 == inner_tiles ? nullptr : inner(is_last ? 0 : slot + 1, (i + is_last) / kernel_);
            const bool fetches = i == from && tile + 1 < outer_tiles();
            if (rows_are_outer()) {
              add_tile(tile, i / kernel_, i % kernel_, packed, inner(slot, i / kernel_), adds || slot > 0,
                       {.b = next, .source = fetches ? grad_of(first + slot) + (tile + 1) * kTileRows : nullptr});
            } else {
              add_tile(i / kernel_, tile, i % kernel_, inner(slot, i / kernel_), packed, adds || slot > 0,
                       {.a = next, .source = fetches ? x_of(first + slot) + (tile + 1) * tile_width_ % in_ : nullptr});
            }
          }
        }
      }
      detail::release_tiles();
    });
  }

  // What is read after a tile: a packed operand, or columns of the one that is not packed yet.
  struct Ahead {
    const uint16_t* a = nullptr;
    const uint16_t* b = nullptr;
    const uint16_t* source = nullptr;
  };

  // A packed tile of the gradient times one of x.
  void add_tile(int64_t row_tile, int64_t column_tile, int64_t ky, const uint16_t* grad, const uint16_t* x, bool adds,
                const Ahead& ahead) {
    const int64_t rows = height_of(row_tile), stride = kernel_ * columns_;
    float* sum = gradient_.mutable_data_ptr<float>() + (row_tile * kTileRows * kernel_ + ky) * columns_ +
                 column_tile * tile_width_;
    x += ky * width_ * tile_width_;
    if (!own_tiles_) {
      return detail::tile_product(rows, tile_width_, depth(), grad, depth(), x, sum, stride, adds);
    }
    using detail::kLine;
    constexpr int64_t kGroup = detail::kPackColumns;
    for (int64_t group = 0; group < rows / kGroup; ++group, sum += kGroup * stride) {
      detail::TileAhead lines;
      if (ahead.a != nullptr) lines.a = {ahead.a + group * kGroup * depth(), kLine, kGroup * kLine};
      if (ahead.b != nullptr) lines.b = {ahead.b + group * kGroup * kLine, kLine, tile_width_ * kLine};
      if (const uint16_t* source = ahead.source) {  // two lines in a row: in four groups all of them
        const int64_t pixel = rows_are_outer() ? out_ : in_;
        (ahead.a == nullptr ? lines.a : lines.b) = {source + group % 2 * pixel + group / 2 * kLine, 2 * pixel,
                                                    detail::kAheadDepth * pixel};
      }
      detail::own_tile_product(kGroup, tile_width_, depth(),
                               {grad + group * kGroup * depth(), /*row=*/2, /*pair=*/2 * kGroup}, x,
                               adds ? detail::TileAddend{sum, stride} : detail::TileAddend{}, {sum, stride}, lines);
    }
  }

  const uint16_t* grad_;
  const uint16_t* x_;
  int64_t pictures_, height_, width_, in_, out_, kernel_, columns_, tile_width_, pack_width_;
  int64_t stretch_rows_, stretches_, chunk_;
  bool adds_, own_tiles_;
  Tensor gradient_, sums_;
  Scratch<uint16_t> packed_;  // the smaller operand
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

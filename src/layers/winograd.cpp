#include "dalle/layers/winograd.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "dalle/core/scratch.h"
#include "dalle/layers/bf16_pack.h"
#include "dalle/layers/tile_product.h"
#include "dalle/layers/winograd_transform.h"

namespace dalle::layers {
namespace {

using detail::kTileColumns;
using detail::kWinogradPoints;
using detail::TiledPictures;
using detail::winograd_stride;

constexpr int64_t kTileRows = 64;  // of one kernel call's result, by kTileColumns
constexpr int64_t kDepth = 512;    // of one kernel call
// With fewer, a kernel's gradient takes longer to transform than the products save.
constexpr int64_t kFewestChannels = 64;
// Transformed operands of a kernel's gradient that are made at once, in numbers: all, if they go into the last cache, so that
// a block's sums need not be kept; else fewer, to go there beside the sums.
constexpr int64_t kWholeSize = int64_t{12} << 20, kStretchSize = int64_t{2} << 20;

const uint16_t* bits(const Tensor& x) { return static_cast<const uint16_t*>(x.const_data_ptr()); }
uint16_t* mutable_bits(const Tensor& x) { return static_cast<uint16_t*>(x.mutable_data_ptr()); }
// Numbers of 16 matrices of `size`.
int64_t points_of(int64_t size) { return kWinogradPoints * winograd_stride(size); }
int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

Tensor channels_last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

// Pictures in channels-last memory and a row of zeros beside them.
struct Pictures {
  explicit Pictures(const Tensor& x_BCHW)
      : memory(channels_last(x_BCHW)),
        zeros(static_cast<size_t>(x_BCHW.size(1))),
        tiled{bits(memory), zeros.data(), memory.size(0), memory.size(2), memory.size(3), memory.size(1)} {}
  Tensor memory;
  std::vector<uint16_t> zeros;
  TiledPictures tiled;
};

// Transformed kernels, in blocks of output columns: points of [depth / 2, columns of the block, 2].
struct Kernels {
  int64_t depth, columns;
  Scratch<uint16_t> points;

  static Kernels make(const Tensor& w, bool turned, double scale) {
    const Tensor kernels = channels_last(w);  // [O, 3, 3, I] in memory
    const int64_t outs = w.size(0), in = w.size(1);
    Kernels out{turned ? outs : in, turned ? in : outs, nullptr};
    const int64_t blocks = tiles_of(out.columns, kTileColumns);
    out.points = scratch<uint16_t>(blocks * points_of(out.depth * kTileColumns));
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t column = block * kTileColumns, width = out.width(block);
        const auto* from = kernels.const_data_ptr<float>();
        uint16_t* to = out.block(block);
        if (turned) {
          detail::winograd_turned_kernel(from, outs, in, column, width, static_cast<float>(scale), to);
        } else {
          detail::winograd_kernel(from, in, column, width, static_cast<float>(scale), to);
        }
      }
    });
    return out;
  }
  uint16_t* block(int64_t block) const { return points.get() + block * points_of(depth * kTileColumns); }
  int64_t width(int64_t block) const { return std::min(kTileColumns, columns - block * kTileColumns); }
};

// Convolves stretches of kTileRows tiles: transforms each once, then meets it with block after block of the kernels.
void convolve_tiles(const TiledPictures& x, const Kernels& kernels, const detail::WinogradOutput& out) {
  const int64_t tiles = x.tiles(), blocks = tiles_of(kernels.columns, kTileColumns);
  const int64_t row_stride =
      x.channels + detail::kPackDepth;  // not a power of two: its rows lie in different cache sets
  at::parallel_for(0, tiles_of(tiles, kTileRows), 1, [&](int64_t begin, int64_t end) {
    const auto input = scratch<uint16_t>(points_of(kTileRows * row_stride));
    const auto sums = scratch<float>(points_of(kTileRows * kTileColumns));
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t tile = stretch * kTileRows, count = std::min(kTileRows, tiles - tile);
      detail::winograd_input(x, tile, count, input.get(), row_stride);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t column = block * kTileColumns, width = kernels.width(block);
        for (int64_t point = 0; point < kWinogradPoints; ++point) {
          const uint16_t* a = input.get() + point * winograd_stride(count * row_stride);
          const uint16_t* b = kernels.block(block) + point * winograd_stride(kernels.depth * width);
          for (int64_t k = 0; k < kernels.depth; k += kDepth) {
            detail::tile_product(count, width, std::min(kDepth, kernels.depth - k), a + k, row_stride, b + k * width,
                                 sums.get() + point * winograd_stride(count * width), width, /*adds=*/k > 0);
          }
        }
        detail::winograd_output(sums.get(), tile, count, column, width, out);
      }
    }
    detail::release_tiles();
  });
}

Tensor convolve_with(const Tensor& x, const Kernels& kernels, detail::WinogradOutput out) {
  const Pictures pictures(x);
  const Tensor result = at::empty({x.size(0), kernels.columns, x.size(2), x.size(3)},
                                  x.options().memory_format(at::MemoryFormat::ChannelsLast));
  out.pixels = mutable_bits(result);
  out.height = x.size(2);
  out.width = x.size(3);
  out.channels = kernels.columns;
  convolve_tiles(pictures.tiled, kernels, out);
  return result;
}

// dw = G^T (sum over tiles of (A dy A^T)^T (B^T x B)) G, by stretches of tiles whose transformed operands stay in a cache.
class KernelGradient {
 public:
  KernelGradient(const Tensor& grad, const Tensor& x)
      : grad_(grad),
        x_(x),
        outs_(grad.size(1)),
        in_(x.size(1)),
        tiles_(tiles_of(x_.tiled.tiles(), detail::kPackDepth) * detail::kPackDepth),
        stretch_(tiles_of_a_stretch()),
        row_stride_(stretch_ + detail::kPackDepth),
        grad_points_(scratch<uint16_t>(points_of(outs_ * row_stride_))),
        input_points_(scratch<uint16_t>(tiles_of(in_, kTileColumns) * points_of(stretch_ * kTileColumns))),
        w_(at::empty({outs_, 3, 3, in_}, x.options().dtype(at::kFloat))),
        b_(at::zeros({outs_}, w_.options())) {
    if (stretch_ < tiles_)
      sums_ = scratch<float>(tiles_of(outs_, kTileRows) * tiles_of(in_, kTileColumns) *
                             points_of(kTileRows * kTileColumns));
  }

  KernelGradients run() {
    for (int64_t tile = 0; tile < tiles_; tile += stretch_) {
      const int64_t count = std::min(stretch_, tiles_ - tile);
      transform(tile, count);
      multiply(count, /*is_first=*/tile == 0, /*is_last=*/tile + count == tiles_);
    }
    return {w_.permute({0, 3, 1, 2}), b_};
  }

 private:
  int64_t tiles_of_a_stretch() const {
    const int64_t size_of_tile = kWinogradPoints * (outs_ + in_);
    if (tiles_ * size_of_tile <= kWholeSize) return tiles_;
    return std::max<int64_t>(1, kStretchSize / size_of_tile / detail::kPackDepth) * detail::kPackDepth;
  }

  uint16_t* input_points(int64_t column) const {
    return input_points_.get() + column / kTileColumns * points_of(stretch_ * kTileColumns);
  }
  int64_t columns(int64_t column) const { return std::min(kTileColumns, in_ - column); }

  void transform(int64_t tile, int64_t count) {
    const int64_t rows = outs_ / detail::kPackColumns, blocks = tiles_of(in_, kTileColumns);
    at::parallel_for(0, rows + blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        if (task < rows) {
          const int64_t row = task * detail::kPackColumns;
          detail::winograd_gradient_transposed(grad_.tiled, tile, count, row, grad_points_.get() + row * row_stride_,
                                               row_stride_, b_.mutable_data_ptr<float>() + row);
        } else {
          const int64_t column = (task - rows) * kTileColumns;
          detail::winograd_input_pairs(x_.tiled, tile, count, column, columns(column), input_points(column));
        }
      }
    });
  }

  void multiply(int64_t count, bool is_first, bool is_last) {
    const int64_t row_tiles = tiles_of(outs_, kTileRows);
    at::parallel_for(0, row_tiles * tiles_of(in_, kTileColumns), 1, [&](int64_t begin, int64_t end) {
      Scratch<float> own;
      if (sums_ == nullptr) own = scratch<float>(points_of(kTileRows * kTileColumns));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task % row_tiles * kTileRows, column = task / row_tiles * kTileColumns;
        const int64_t height = std::min(kTileRows, outs_ - row), width = columns(column);
        float* sums = own ? own.get() : sums_.get() + task * points_of(kTileRows * kTileColumns);
        for (int64_t point = 0; point < kWinogradPoints; ++point) {
          const uint16_t* a = grad_points_.get() + point * winograd_stride(outs_ * row_stride_) + row * row_stride_;
          const uint16_t* b = input_points(column) + point * winograd_stride(count * width);
          for (int64_t k = 0; k < count; k += kDepth) {
            detail::tile_product(height, width, std::min(kDepth, count - k), a + k, row_stride_, b + k * width,
                                 sums + point * winograd_stride(height * width), width, /*adds=*/k > 0 || !is_first);
          }
        }
        if (is_last) {
          detail::winograd_kernel_gradient(sums, height, width, w_.mutable_data_ptr<float>() + row * 9 * in_ + column,
                                           in_);
        }
      }
      detail::release_tiles();
    });
  }

  const Pictures grad_, x_;
  int64_t outs_, in_, tiles_, stretch_, row_stride_;
  Scratch<uint16_t> grad_points_, input_points_;
  Scratch<float> sums_;  // of all blocks [16, height, width]; null where one stretch is all
  Tensor w_, b_;
};

void check(const Tensor& x, const Tensor& w, int64_t channels) {
  TORCH_CHECK_VALUE(fits_winograd(x, w) && x.size(1) == channels, "[winograd] pictures ", x.sizes(), " and kernels ",
                    w.sizes(), " are not of types and sizes that it takes");
}

bool are_pictures(const Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kBFloat16 && x.dim() == 4 && x.numel() > 0 &&
         x.size(1) % detail::kPackDepth == 0 && x.size(2) % 2 == 0 && x.size(3) % 2 == 0;
}

}  // namespace

bool fits_winograd(const Tensor& x_BCHW, const Tensor& w) {
  return has_bf16_products() && are_pictures(x_BCHW) && w.is_cpu() && w.scalar_type() == at::kFloat && w.dim() == 4 &&
         w.size(2) == 3 && w.size(3) == 3 && w.size(0) % detail::kPackDepth == 0 && w.size(1) % detail::kPackDepth == 0;
}

bool fits_winograd_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW, int64_t kernel) {
  return has_bf16_products() && kernel == 3 && are_pictures(grad_BOHW) && are_pictures(x_BIHW) &&
         std::min(grad_BOHW.size(1), x_BIHW.size(1)) >= kFewestChannels;
}

Tensor winograd_convolve(const Tensor& x_BIHW, const Tensor& w, const Tensor& b, bool relu) {
  check(x_BIHW, w, w.size(1));
  const Tensor bias = b.contiguous();
  return convolve_with(x_BIHW, Kernels::make(w, /*turned=*/false, 1.0),
                       {.bias = bias.const_data_ptr<float>(), .relu = relu});
}

Tensor winograd_input_gradient(const Tensor& grad_BOHW, const Tensor& w, double scale, const Tensor& relu_output) {
  check(grad_BOHW, w, w.size(0));
  Tensor mask;
  if (relu_output.defined()) {
    TORCH_CHECK_VALUE(are_pictures(relu_output) && relu_output.size(1) == w.size(1) &&
                          relu_output.numel() / relu_output.size(1) == grad_BOHW.numel() / grad_BOHW.size(1),
                      "[winograd] a ReLU output ", relu_output.sizes(), " does not go with a gradient ",
                      grad_BOHW.sizes(), " and kernels ", w.sizes());
    mask = channels_last(relu_output);
  }
  return convolve_with(grad_BOHW, Kernels::make(w, /*turned=*/true, scale),
                       {.relu_output = mask.defined() ? bits(mask) : nullptr});
}

KernelGradients winograd_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW) {
  TORCH_CHECK_VALUE(are_pictures(grad_BOHW) && are_pictures(x_BIHW) && grad_BOHW.size(0) == x_BIHW.size(0) &&
                        grad_BOHW.sizes().slice(2) == x_BIHW.sizes().slice(2) && has_bf16_products(),
                    "[winograd] gradient ", grad_BOHW.sizes(), " and input ", x_BIHW.sizes(),
                    " are not of types and sizes that it takes");
  return KernelGradient(grad_BOHW, x_BIHW).run();
}

}  // namespace dalle::layers

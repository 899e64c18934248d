// The linear maps of Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308, section 4.1) between pictures, 3x3 kernels
// and the 16 points at which a convolution is a matrix product. A tile is 2x2 pixels; its input is the 4x4 around it.
// AVX-512 only, as are the products (layers/bf16_product.h); all loops of one thread.
#pragma once

#include <cstdint>

namespace dalle::layers::detail {

inline constexpr int64_t kWinogradPoints = 16;
/// Below, "points of [a, b]" are 16 matrices, each this far from the next one. They are written and read side by side: a power
/// of two apart, their lines would fall into the same set of the cache.
constexpr int64_t winograd_stride(int64_t size) { return size + 32; }

/// Pictures [B, height, width, channels] in bf16, height and width even, channels a multiple of 16. Tiles are numbered row by
/// row, picture by picture; those past the last one count as zeros.
struct TiledPictures {
  const uint16_t* pixels;
  const uint16_t* zeros;  // at least `channels` of them
  int64_t batch, height, width, channels;
  int64_t tiles() const { return batch * (height / 2) * (width / 2); }
};

/// B^T d B of `count` tiles' inputs -> points of [count, row_stride], of which `channels` are written.
void winograd_input(const TiledPictures& x, int64_t first_tile, int64_t count, uint16_t* out, int64_t row_stride);

/// The same for channels [channel, channel + columns) as right-hand sides whose sum runs over tiles: pairs
/// points of [count / 2, columns, 2]. count even, columns a multiple of 16.
void winograd_input_pairs(const TiledPictures& x, int64_t first_tile, int64_t count, int64_t channel, int64_t columns,
                          uint16_t* out);

/// A dy A^T of `count` (a multiple of 32) tiles of an output's gradient, channels [channel, channel + 16), transposed:
/// rows c of points of [grad.channels, row_stride]. sums[c] += all pixels of channel `channel` + c.
void winograd_gradient_transposed(const TiledPictures& grad, int64_t first_tile, int64_t count, int64_t channel,
                                  uint16_t* out, int64_t row_stride, float* sums);

/// scale * G g G^T of f32 kernels w [out, 3, 3, in] as right-hand sides whose sum runs over `in`: for output channels
/// [column, column + columns), points of [in / 2, columns, 2]. in a multiple of 32, columns of 16.
void winograd_kernel(const float* w, int64_t in, int64_t column, int64_t columns, float scale, uint16_t* out);

/// The same for the input's gradient: turned kernels, the sum over `outs`, for input channels [column, column + columns):
/// points of [outs / 2, columns, 2]. outs even, columns a multiple of 16.
void winograd_turned_kernel(const float* w, int64_t outs, int64_t in, int64_t column, int64_t columns, float scale,
                            uint16_t* out);

/// What becomes of the sums at the 16 points.
struct WinogradOutput {
  uint16_t* pixels;  // [B, height, width, channels] bf16
  int64_t height, width, channels;
  const float* bias;            // [channels], or null
  bool relu;                    // max(0, x)
  const uint16_t* relu_output;  // as `pixels`, or null: zero where this is zero
};

/// A^T m A (+ bias), for `count` tiles and channels [channel, channel + columns) of m, points of [count, columns].
void winograd_output(const float* m, int64_t first_tile, int64_t count, int64_t channel, int64_t columns,
                     const WinogradOutput& out);

/// G^T m G for points m of [rows, columns] -> kernels' gradients [row, 3, 3, in] at out, `columns` channels of each.
void winograd_kernel_gradient(const float* m, int64_t rows, int64_t columns, float* out, int64_t in);

}  // namespace dalle::layers::detail

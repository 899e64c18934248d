#include "dalle/layers/winograd_transform.h"

#include "dalle/core/avx512.h"
#include "dalle/layers/bf16_pack.h"

namespace dalle::layers::detail {
namespace {

constexpr int64_t kLanes = 16;

DALLE_AVX512_BF16_PART __m512 load(const uint16_t* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

DALLE_AVX512_BF16_PART void store(uint16_t* out, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// Two registers as pairs of bf16, the even one first.
DALLE_AVX512_BF16_PART void store_pairs(uint16_t* out, __m512 even, __m512 odd) {
  const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even)));
  const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd)));
  _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

DALLE_AVX512_BF16_PART __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
DALLE_AVX512_BF16_PART __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }

// Where a tile's 4x4 inputs or 2x2 outputs lie: the channels of each pixel, or zeros.
struct InputPixels {
  const uint16_t* at[4][4];
};

struct TilePlace {
  int64_t picture, y, x;  // of its first pixel
};

TilePlace place_of(int64_t tile, int64_t height, int64_t width) {
  const int64_t across = width / 2, of_picture = height / 2 * across;
  return {tile / of_picture, tile % of_picture / across * 2, tile % across * 2};
}

InputPixels input_pixels(const TiledPictures& pictures, int64_t tile) {
  InputPixels out;
  const TilePlace place = place_of(tile, pictures.height, pictures.width);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t y = place.y + i - 1, x = place.x + j - 1;
      const bool inside =
          place.picture < pictures.batch && y >= 0 && y < pictures.height && x >= 0 && x < pictures.width;
      out.at[i][j] =
          inside ? pictures.pixels + ((place.picture * pictures.height + y) * pictures.width + x) * pictures.channels
                 : pictures.zeros;
    }
  }
  return out;
}

// B^T applied to four numbers.
DALLE_AVX512_BF16_PART void input_step(__m512 (&d)[4]) {
  const __m512 d1 = d[1];
  d[0] = sub(d[0], d[2]);
  d[1] = add(d1, d[2]);
  d[2] = sub(d[2], d1);
  d[3] = sub(d1, d[3]);
}

// B^T d B for 16 channels.
DALLE_AVX512_BF16_PART void input_points(const InputPixels& pixels, int64_t channel, __m512 (&v)[4][4]) {
  for (int j = 0; j < 4; ++j) {
    __m512 column[4];
    for (int i = 0; i < 4; ++i) column[i] = load(pixels.at[i][j] + channel);
    input_step(column);
    for (int i = 0; i < 4; ++i) v[i][j] = column[i];
  }
  for (int i = 0; i < 4; ++i) input_step(v[i]);
}

// A applied to two numbers.
DALLE_AVX512_BF16_PART void gradient_step(__m512 y0, __m512 y1, __m512 (&out)[4]) {
  out[0] = y0;
  out[1] = add(y0, y1);
  out[2] = sub(y0, y1);
  out[3] = sub(_mm512_setzero_ps(), y1);
}

// G applied to three numbers.
DALLE_AVX512_BF16_PART void kernel_step(__m512 g0, __m512 g1, __m512 g2, __m512 (&out)[4]) {
  const __m512 half = _mm512_set1_ps(0.5f), outer = _mm512_mul_ps(half, add(g0, g2)), inner = _mm512_mul_ps(half, g1);
  out[0] = g0;
  out[1] = add(outer, inner);
  out[2] = sub(outer, inner);
  out[3] = g2;
}

// scale * G g G^T for 16 channels of a kernel whose taps lie `stride` apart, in this order or turned around.
DALLE_AVX512_BF16_PART void kernel_points(const float* g, int64_t stride, bool turned, __m512 scale,
                                          __m512 (&u)[4][4]) {
  __m512 columns[3][4];
  for (int x = 0; x < 3; ++x) {
    __m512 taps[3];
    for (int y = 0; y < 3; ++y) {
      const int tap = turned ? 8 - (3 * y + x) : 3 * y + x;
      taps[y] = _mm512_mul_ps(scale, _mm512_loadu_ps(g + tap * stride));
    }
    kernel_step(taps[0], taps[1], taps[2], columns[x]);
  }
  for (int i = 0; i < 4; ++i) kernel_step(columns[0][i], columns[1][i], columns[2][i], u[i]);
}

// A^T applied to four numbers.
DALLE_AVX512_BF16_PART void output_step(__m512 m0, __m512 m1, __m512 m2, __m512 m3, __m512& y0, __m512& y1) {
  y0 = add(add(m0, m1), m2);
  y1 = sub(sub(m1, m2), m3);
}

// G^T applied to four numbers.
DALLE_AVX512_BF16_PART void kernel_gradient_step(__m512 m0, __m512 m1, __m512 m2, __m512 m3, __m512 (&out)[3]) {
  const __m512 half = _mm512_set1_ps(0.5f), sum = _mm512_mul_ps(half, add(m1, m2));
  out[0] = add(m0, sum);
  out[1] = _mm512_mul_ps(half, sub(m1, m2));
  out[2] = add(sum, m3);
}

}  // namespace

DALLE_AVX512_BF16 void winograd_input(const TiledPictures& x, int64_t first_tile, int64_t count, uint16_t* out,
                                      int64_t row_stride) {
  const int64_t point = winograd_stride(count * row_stride);
  for (int64_t t = 0; t < count; ++t) {
    const InputPixels pixels = input_pixels(x, first_tile + t);
    for (int64_t c = 0; c < x.channels; c += kLanes) {
      __m512 v[4][4];
      input_points(pixels, c, v);
      uint16_t* to = out + t * row_stride + c;
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * point, v[i][j]);
      }
    }
  }
}

DALLE_AVX512_BF16 void winograd_input_pairs(const TiledPictures& x, int64_t first_tile, int64_t count, int64_t channel,
                                            int64_t columns, uint16_t* out) {
  const int64_t point = winograd_stride(count * columns);
  for (int64_t t = 0; t < count; t += 2) {
    const InputPixels even = input_pixels(x, first_tile + t), odd = input_pixels(x, first_tile + t + 1);
    for (int64_t c = 0; c < columns; c += kLanes) {
      __m512 v[4][4], w[4][4];
      input_points(even, channel + c, v);
      input_points(odd, channel + c, w);
      uint16_t* to = out + t * columns + 2 * c;
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) store_pairs(to + (4 * i + j) * point, v[i][j], w[i][j]);
      }
    }
  }
}

DALLE_AVX512_BF16 void winograd_gradient_transposed(const TiledPictures& grad, int64_t first_tile, int64_t count,
                                                    int64_t channel, uint16_t* out, int64_t row_stride, float* sums) {
  const int64_t point = winograd_stride(grad.channels * row_stride);
  alignas(64) uint16_t points[kWinogradPoints][kPackDepth * kLanes];
  const int64_t line = grad.width * grad.channels, tiles = grad.tiles();
  __m512 sum = _mm512_loadu_ps(sums);
  for (int64_t first = 0; first < count; first += kPackDepth) {
    for (int64_t t = 0; t < kPackDepth; ++t) {
      const int64_t tile = first_tile + first + t;
      const TilePlace place = place_of(tile, grad.height, grad.width);
      const bool inside = tile < tiles;
      const uint16_t* at =
          inside ? grad.pixels + (place.picture * grad.height + place.y) * line + place.x * grad.channels + channel
                 : grad.zeros;
      const int64_t right = inside ? grad.channels : 0, down = inside ? line : 0;
      __m512 rows[2][4];
      gradient_step(load(at), load(at + right), rows[0]);
      gradient_step(load(at + down), load(at + down + right), rows[1]);
      for (int j = 0; j < 4; ++j) {
        __m512 column[4];
        gradient_step(rows[0][j], rows[1][j], column);
        for (int i = 0; i < 4; ++i) store(points[4 * i + j] + t * kLanes, column[i]);
        if (j == 1) sum = add(sum, column[1]);
      }
    }
    for (int64_t p = 0; p < kWinogradPoints; ++p) {
      transpose(points[p], kLanes, kPackDepth, kLanes, out + p * point + first, row_stride, nullptr);
    }
  }
  _mm512_storeu_ps(sums, sum);
}

DALLE_AVX512_BF16 void winograd_kernel(const float* w, int64_t in, int64_t column, int64_t columns, float scale,
                                       uint16_t* out) {
  const int64_t point = winograd_stride(in * columns);
  alignas(64) uint16_t points[kWinogradPoints][kLanes * kPackDepth];
  const __m512 scales = _mm512_set1_ps(scale);
  for (int64_t o = 0; o < columns; o += kLanes) {
    for (int64_t i = 0; i < in; i += kPackDepth) {
      for (int64_t n = 0; n < kLanes; ++n) {
        for (int64_t half = 0; half < kPackDepth; half += kLanes) {
          __m512 u[4][4];
          kernel_points(w + (column + o + n) * 9 * in + i + half, in, /*turned=*/false, scales, u);
          for (int p = 0; p < kWinogradPoints; ++p) store(points[p] + n * kPackDepth + half, u[p / 4][p % 4]);
        }
      }
      for (int64_t p = 0; p < kWinogradPoints; ++p) {
        pack_transposed(points[p], kPackDepth, kPackDepth, kLanes, out + p * point + i * columns + 2 * o, columns);
      }
    }
  }
}

DALLE_AVX512_BF16 void winograd_turned_kernel(const float* w, int64_t outs, int64_t in, int64_t column, int64_t columns,
                                              float scale, uint16_t* out) {
  const int64_t point = winograd_stride(outs * columns);
  const __m512 scales = _mm512_set1_ps(scale);
  for (int64_t o = 0; o < outs; o += 2) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      __m512 even[4][4], odd[4][4];
      kernel_points(w + o * 9 * in + column + c, in, /*turned=*/true, scales, even);
      kernel_points(w + (o + 1) * 9 * in + column + c, in, /*turned=*/true, scales, odd);
      for (int p = 0; p < kWinogradPoints; ++p) {
        store_pairs(out + p * point + o * columns + 2 * c, even[p / 4][p % 4], odd[p / 4][p % 4]);
      }
    }
  }
}

DALLE_AVX512_BF16 void winograd_output(const float* m, int64_t first_tile, int64_t count, int64_t channel,
                                       int64_t columns, const WinogradOutput& out) {
  const int64_t point = winograd_stride(count * columns), line = out.width * out.channels;
  for (int64_t t = 0; t < count; ++t) {
    const TilePlace place = place_of(first_tile + t, out.height, out.width);
    const int64_t at = (place.picture * out.height + place.y) * line + place.x * out.channels + channel;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* from = m + t * columns + c;
      __m512 rows[2][4];
      for (int j = 0; j < 4; ++j) {
        output_step(_mm512_loadu_ps(from + j * point), _mm512_loadu_ps(from + (4 + j) * point),
                    _mm512_loadu_ps(from + (8 + j) * point), _mm512_loadu_ps(from + (12 + j) * point), rows[0][j],
                    rows[1][j]);
      }
      const __m512 bias = out.bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(out.bias + channel + c);
      for (int i = 0; i < 2; ++i) {
        __m512 y[2];
        output_step(rows[i][0], rows[i][1], rows[i][2], rows[i][3], y[0], y[1]);
        for (int j = 0; j < 2; ++j) {
          const int64_t pixel = at + i * line + j * out.channels + c;
          __m512 value = add(y[j], bias);
          if (out.relu) {  // NaN stays
            value = _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_LT_OQ),
                                       _mm512_setzero_ps());
          }
          if (out.relu_output != nullptr) {
            const __mmask16 kept = _mm512_cmp_ps_mask(load(out.relu_output + pixel), _mm512_setzero_ps(), _CMP_NEQ_UQ);
            value = _mm512_maskz_mov_ps(kept, value);
          }
          store(out.pixels + pixel, value);
        }
      }
    }
  }
}

DALLE_AVX512_BF16 void winograd_kernel_gradient(const float* m, int64_t rows, int64_t columns, float* out, int64_t in) {
  const int64_t point = winograd_stride(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* from = m + r * columns + c;
      __m512 across[3][4];
      for (int j = 0; j < 4; ++j) {
        __m512 taps[3];
        kernel_gradient_step(_mm512_loadu_ps(from + j * point), _mm512_loadu_ps(from + (4 + j) * point),
                             _mm512_loadu_ps(from + (8 + j) * point), _mm512_loadu_ps(from + (12 + j) * point), taps);
        for (int i = 0; i < 3; ++i) across[i][j] = taps[i];
      }
      for (int i = 0; i < 3; ++i) {
        __m512 taps[3];
        kernel_gradient_step(across[i][0], across[i][1], across[i][2], across[i][3], taps);
        for (int j = 0; j < 3; ++j) _mm512_storeu_ps(out + (r * 9 + 3 * i + j) * in + c, taps[j]);
      }
    }
  }
}

}  // namespace dalle::layers::detail

#include "dalle/layers/bf16_product.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <memory>

#include "dalle/core/bf16.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/bf16_pack.h"

namespace dalle::layers {
namespace {

constexpr int64_t kTileRows = 64, kTileColumns = 64;  // of the result: 16 KiB in f32, at home in the first cache
constexpr int64_t kDepth = 512;                       // of one kernel call
constexpr int64_t kPanelTiles = 4;                    // tiles of b that a tile of a meets before the next one

const at::BFloat16* bf16(const uint16_t* x) { return reinterpret_cast<const at::BFloat16*>(x); }
const uint16_t* bits(const Tensor& x) { return reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>()); }

// The finished tile [height, width] to where it belongs, `stride` numbers from row to row. The bias may be null.
DALLE_VECTORISED void store_tile(const float* sum, int64_t height, int64_t width, const float* bias, uint16_t* out,
                                 int64_t stride) {
  for (int64_t r = 0; r < height; ++r, sum += width, out += stride) {
    for (int64_t i = 0; i < width; ++i) out[i] = float_to_bf16(sum[i] + (bias == nullptr ? 0.0f : bias[i]));
  }
}

DALLE_VECTORISED void store_tile(const float* sum, int64_t height, int64_t width, const float* bias, float* out,
                                 int64_t stride) {
  for (int64_t r = 0; r < height; ++r, sum += width, out += stride) {
    for (int64_t i = 0; i < width; ++i) out[i] = sum[i] + (bias == nullptr ? 0.0f : bias[i]);
  }
}

// One product: who packs b, and where the result goes.
struct Product {
  const uint16_t* a;
  int64_t a_stride;
  const uint16_t* b;
  int64_t b_stride;
  bool b_is_transposed;  // [N, K] in memory
  int64_t rows, columns, depth;
  const float* bias;
  Tensor out;
  void* out_data = out.mutable_data_ptr();

  // Columns [column, column + width) of b as pairs [depth / 2, width, 2].
  void pack(int64_t column, int64_t width, uint16_t* to) const {
    if (b_is_transposed) {
      detail::pack_transposed(b + column * b_stride, b_stride, depth, width, to, width);
    } else {
      detail::pack_rows(b + column, b_stride, depth, width, to, width);
    }
  }

  void tile(int64_t row, int64_t height, int64_t column, int64_t width, const uint16_t* packed, float* sum) const {
    for (int64_t k = 0; k < depth; k += kDepth) {
      at::native::cpublas::brgemm(height, width, std::min(kDepth, depth - k), a_stride, width, width, /*add_C=*/k > 0,
                                  bf16(a + row * a_stride + k), bf16(packed + k * width), sum);
    }
    const float* bias_here = bias == nullptr ? nullptr : bias + column;
    const int64_t at = row * columns + column;
    if (out.scalar_type() == at::kFloat) {
      store_tile(sum, height, width, bias_here, static_cast<float*>(out_data) + at, columns);
    } else {
      store_tile(sum, height, width, bias_here, static_cast<uint16_t*>(out_data) + at, columns);
    }
  }

  // A panel of columns times a stretch of rows: b is packed once, a tile of a stays in the cache for the whole panel.
  void panel(int64_t column, int64_t width, int64_t row, int64_t row_end) const {
    const auto packed = std::make_unique_for_overwrite<uint16_t[]>(static_cast<size_t>(depth * width));
    alignas(64) float sum[kTileRows * kTileColumns];
    for (int64_t c = 0; c < width; c += kTileColumns) {
      pack(column + c, std::min(kTileColumns, width - c), packed.get() + c * depth);
    }
    for (; row < row_end; row += kTileRows) {
      for (int64_t c = 0; c < width; c += kTileColumns) {
        tile(row, std::min(kTileRows, row_end - row), column + c, std::min(kTileColumns, width - c),
             packed.get() + c * depth, sum);
      }
    }
    at::native::cpublas::brgemm_release();
  }

  void run() const {
    const int64_t width = std::min(columns, kPanelTiles * kTileColumns), panels = (columns + width - 1) / width;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows, wanted = 4 * at::get_num_threads();
    const int64_t stretches = at::get_num_threads() == 1 ? 1 : std::min(tiles, (wanted + panels - 1) / panels);
    const int64_t stretch = (tiles + stretches - 1) / stretches * kTileRows;
    at::parallel_for(0, panels * stretches, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column = task / stretches * width, row = task % stretches * stretch;
        if (row < rows) panel(column, std::min(width, columns - column), row, std::min(rows, row + stretch));
      }
    });
  }
};

Tensor product(const Tensor& a, const Tensor& b, bool b_is_transposed, at::ScalarType out_type,
               const std::optional<Tensor>& bias) {
  const int64_t columns = b.size(b_is_transposed ? 0 : 1);
  TORCH_CHECK_VALUE(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(b_is_transposed ? 1 : 0),
                    "[bf16 product] sizes do not match: ", a.sizes(), " and ", b.sizes());
  TORCH_CHECK_VALUE(fits_bf16_product(a, b, a.size(1), columns), "[bf16 product] operands ", a.sizes(), " and ",
                    b.sizes(), " are not of a type and size that it takes");
  const Tensor out = at::empty({a.size(0), columns}, a.options().dtype(out_type));
  const Product product{bits(a),     a.stride(0),     bits(b),
                        b.stride(0), b_is_transposed, a.size(0),
                        columns,     a.size(1),       bias ? bias->const_data_ptr<float>() : nullptr,
                        out};
  product.run();
  return out;
}

}  // namespace

bool has_bf16_products() {
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                          __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  return has;
}

bool fits_bf16_product(const Tensor& a, const Tensor& b, int64_t summed, int64_t columns) {
  const auto fits = [](const Tensor& x) {
    return x.is_cpu() && x.scalar_type() == at::kBFloat16 && x.dim() == 2 && (x.stride(1) == 1 || x.size(1) == 1);
  };
  return has_bf16_products() && fits(a) && fits(b) && a.size(0) > 0 && summed > 0 && summed % detail::kPackDepth == 0 &&
         columns > 0 && columns % detail::kPackColumns == 0;
}

Tensor product_nt(const Tensor& a_MK, const Tensor& b_NK, at::ScalarType out_type,
                  const std::optional<Tensor>& bias_N) {
  return product(a_MK, b_NK, /*b_is_transposed=*/true, out_type, bias_N);
}

Tensor product_nt_f32(const Tensor& a_MK, const Tensor& b_NK, const std::optional<Tensor>& bias_N) {
  const auto split = [](const Tensor& x, int64_t low_third) {
    TORCH_CHECK_VALUE(x.dim() == 2 && x.is_cpu() && x.scalar_type() == at::kFloat && x.stride(1) == 1 &&
                          x.size(1) % detail::kPackDepth == 0 && has_bf16_products(),
                      "[f32 product] a matrix ", x.sizes(), " is not of a type and size that it takes");
    const Tensor out = at::empty({x.size(0), 3 * x.size(1)}, x.options().dtype(at::kBFloat16));
    at::parallel_for(0, x.size(0), 64, [&](int64_t begin, int64_t end) {
      detail::split_rows(x.const_data_ptr<float>() + begin * x.stride(0), x.stride(0), end - begin, x.size(1),
                         low_third, static_cast<uint16_t*>(out.mutable_data_ptr()) + begin * out.size(1));
    });
    return out;
  };
  // high high + low high + high low.
  return product_nt(split(a_MK, 1), split(b_NK, 2), at::kFloat, bias_N);
}

Tensor product_nn(const Tensor& a_MK, const Tensor& b_KN, at::ScalarType out_type) {
  return product(a_MK, b_KN, /*b_is_transposed=*/false, out_type, std::nullopt);
}

}  // namespace dalle::layers

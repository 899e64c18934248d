#include "dalle/layers/bf16_product.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "dalle/core/bf16.h"
#include "dalle/core/scratch.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/bf16_pack.h"
#include "dalle/layers/tile_product.h"

namespace dalle::layers {
namespace {

using detail::kLine;
using detail::kTileColumns;
using detail::Tiles;

constexpr int64_t kTileRows = 64;  // of the result, by kTileColumns: 16 KiB in f32, at home in the first cache
constexpr int64_t kDepth = 512;    // of one call of oneDNN's kernels
constexpr int64_t kOwnDepth = 1024;
// Whether tiles are finished by the own kernels, which fetch ahead.
bool are_own_tiles(Epilogue epilogue) { return detail::tiles() == Tiles::kOwn && epilogue == Epilogue::kNone; }

// Columns of b that a tile of a meets before the next one. Where a is not fetched ahead, they are to last.
int64_t panel_width(Epilogue epilogue) { return (are_own_tiles(epilogue) ? 2 : 4) * kTileColumns; }

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

// The same and an addend, which may be what is there.
DALLE_VECTORISED void add_tile(const float* sum, int64_t height, int64_t width, const float* bias, const float* addend,
                               float* out, int64_t stride) {
  for (int64_t r = 0; r < height; ++r, sum += width, addend += stride, out += stride) {
    for (int64_t i = 0; i < width; ++i) out[i] = addend[i] + sum[i] + (bias == nullptr ? 0.0f : bias[i]);
  }
}

// clang-format off
DALLE_VECTORISED void store_quick_gelu(const float* sum, int64_t height, int64_t width, const float* bias, uint16_t* out, int64_t stride) {
  for (int64_t r = 0; r < height; ++r, sum += width, out += stride) {
    for (int64_t i = 0; i < width; ++i) out[i] = float_to_bf16(vector_quick_gelu(sum[i] + (bias == nullptr ? 0.0f : bias[i])));
  }
}
DALLE_VECTORISED void store_gelu(const float* sum, int64_t height, int64_t width, const float* bias, uint16_t* out, int64_t stride) {
  for (int64_t r = 0; r < height; ++r, sum += width, out += stride) {
    for (int64_t i = 0; i < width; ++i) out[i] = float_to_bf16(vector_gelu(sum[i] + (bias == nullptr ? 0.0f : bias[i])));
  }
}
// clang-format on

// One product: who packs b, and where the result goes.
struct Product {
  const uint16_t* a;
  int64_t a_stride;
  const void* b;
  int64_t b_stride;
  bool b_is_transposed;  // [N, K] in memory
  bool b_is_wide;        // f32, rounded as it is packed
  int64_t rows, columns, depth;
  const float* bias;
  const uint16_t* prepacked;  // of the whole of b, or null
  at::ScalarType out_type;
  void* out;
  Epilogue epilogue = Epilogue::kNone;
  const float* addend = nullptr;  // of out's size, f32 as out then is; may be out itself

  // Columns [column, column + width) of b as pairs [depth / 2, width, 2].
  void pack(int64_t column, int64_t width, uint16_t* to) const {
    const auto pack_from = [&](const auto* from) {
      if (b_is_transposed) {
        detail::pack_transposed(from + column * b_stride, b_stride, depth, width, to, width);
      } else {
        detail::pack_rows(from + column, b_stride, depth, width, to, width);
      }
    };
    b_is_wide ? pack_from(static_cast<const float*>(b)) : pack_from(static_cast<const uint16_t*>(b));
  }

  void pack_panel(int64_t column, int64_t width, uint16_t* to) const {
    for (int64_t c = 0; c < width; c += kTileColumns) {
      pack(column + c, std::min(kTileColumns, width - c), to + c * depth);
    }
  }

  // What is read after a tile, where it is known and not read already: of a, of packed columns, and of b as it lies.
  struct Next {
    const uint16_t* a = nullptr;
    const uint16_t* packed = nullptr;
    detail::LinesAhead source;

    // `k` further on in depth.
    detail::LinesAhead source_at(int64_t k) const {
      return {source.data == nullptr ? nullptr : source.data + k / detail::kAheadDepth * source.step, source.row,
              source.step};
    }
  };

  // The next panel's part that is fetched while tile `index` of this one is computed: all tiles of the first few rows of tiles
  // bring a whole panel, each some numbers of all rows that lie 64 bytes long side by side.
  detail::LinesAhead source_ahead(int64_t next_column, int64_t index) const {
    const int64_t size = b_is_wide ? 2 : 1, width = std::min(panel_width(epilogue), columns - next_column);
    if (prepacked != nullptr || width <= 0) return {};
    const uint16_t* from = static_cast<const uint16_t*>(b);
    if (b_is_transposed) {
      const int64_t tiles = (width + kTileColumns - 1) / kTileColumns, part = index / tiles;
      if (part >= size) return {};
      return {from + (next_column + index % tiles * kTileColumns) * b_stride * size + part * kLine, b_stride * size,
              size * kLine};
    }
    if (index * kLine >= width * size) return {};
    return {from + next_column * size + index * kLine, b_stride * size, detail::kAheadDepth * b_stride * size};
  }

  void tile(int64_t row, int64_t height, int64_t column, int64_t width, const uint16_t* packed, float* sum,
            const Next& next) const {
    if (are_own_tiles(epilogue)) {
      return own_tile(row, height, column, width, packed, sum, next);
    }
    for (int64_t k = 0; k < depth; k += kDepth) {
      detail::tile_product(height, width, std::min(kDepth, depth - k), a + row * a_stride + k, a_stride,
                           packed + k * width, sum, width, /*adds=*/k > 0);
    }
    const float* bias_here = bias == nullptr ? nullptr : bias + column;
    const int64_t at = row * columns + column;
    if (out_type == at::kFloat) {
      float* to = static_cast<float*>(out) + at;
      if (addend != nullptr) return add_tile(sum, height, width, bias_here, addend + at, to, columns);
      return store_tile(sum, height, width, bias_here, to, columns);
    }
    auto* bits_here = static_cast<uint16_t*>(out) + at;
    switch (epilogue) {
      case Epilogue::kNone:
        return store_tile(sum, height, width, bias_here, bits_here, columns);
      case Epilogue::kGelu:
        return store_gelu(sum, height, width, bias_here, bits_here, columns);
      case Epilogue::kQuickGelu:
        return store_quick_gelu(sum, height, width, bias_here, bits_here, columns);
    }
  }

  // A tile without epilogue; where one call does not do, what is not finished goes to `sum`.
  void own_tile(int64_t row, int64_t height, int64_t column, int64_t width, const uint16_t* packed, float* sum,
                const Next& next) const {
    const int64_t at = row * columns + column;
    detail::TileSums finished{.stride = columns, .is_bf16 = out_type == at::kBFloat16};
    finished.at =
        finished.is_bf16 ? static_cast<void*>(static_cast<uint16_t*>(out) + at) : static_cast<float*>(out) + at;
    detail::TileAddend added;
    if (addend != nullptr) added = {.data = addend + at, .stride = columns};
    if (bias != nullptr) added.bias = bias + column;
    for (int64_t k = 0; k < depth; k += kOwnDepth) {
      const bool is_last = k + kOwnDepth >= depth;
      const detail::TileSums sums = is_last ? finished : detail::TileSums{.at = sum, .stride = width};
      const uint16_t* rows_here = a + row * a_stride + k;
      const uint16_t* packed_here = packed + k * width;
      detail::TileAhead ahead{.a = {is_last ? next.a : rows_here + kOwnDepth, a_stride, kLine}, .b = next.source_at(k)};
      if (ahead.b.data == nullptr) {
        ahead.b = {is_last ? next.packed : packed_here + kOwnDepth * width, kLine, width * kLine};
      }
      detail::own_tile_product(height, width, std::min(kOwnDepth, depth - k), {rows_here, a_stride}, packed_here, added,
                               sums, ahead);
      added = {.data = sum, .stride = width};
    }
  }

  // A panel of columns times a stretch of rows: b is packed once, a tile of a stays in the cache for the whole panel.
  void panel(int64_t column, int64_t width, int64_t row, int64_t row_end) const {
    Scratch<uint16_t> own;
    const uint16_t* packed = prepacked == nullptr ? nullptr : prepacked + column * depth;
    if (packed == nullptr) {
      own = scratch<uint16_t>(depth * width);
      pack_panel(column, width, own.get());
      packed = own.get();
    }
    alignas(64) float sum[kTileRows * kTileColumns];
    for (int64_t index = 0; row < row_end; row += kTileRows) {
      for (int64_t c = 0; c < width; c += kTileColumns, ++index) {
        Next next{.source = source_ahead(column + width, index)};
        if (c + kTileColumns >= width && row + kTileRows < row_end) next.a = a + (row + kTileRows) * a_stride;
        if (prepacked != nullptr && column + c + kTileColumns < columns) {
          next.packed = packed + (c + kTileColumns) * depth;
        }
        tile(row, std::min(kTileRows, row_end - row), column + c, std::min(kTileColumns, width - c), packed + c * depth,
             sum, next);
      }
    }
    detail::release_tiles();
  }

  void run() const {
    const int64_t width = std::min(columns, panel_width(epilogue)), panels = (columns + width - 1) / width;
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

bool is_matrix(const Tensor& x) { return x.is_cpu() && x.dim() == 2 && (x.stride(1) == 1 || x.size(1) == 1); }

bool is_left_hand_side(const Tensor& x) {
  return has_bf16_products() && is_matrix(x) && x.scalar_type() == at::kBFloat16 && x.size(0) > 0;
}

bool is_right_hand_side(const Tensor& x) {
  return has_bf16_products() && is_matrix(x) && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat);
}

bool fits(int64_t summed, int64_t columns) {
  return summed > 0 && summed % detail::kPackDepth == 0 && columns > 0 && columns % detail::kPackColumns == 0;
}

// A product of which only b is known.
Product right_hand_side(const Tensor& b, bool is_transposed) {
  return {.b = b.const_data_ptr(),
          .b_stride = b.stride(0),
          .b_is_transposed = is_transposed,
          .b_is_wide = b.scalar_type() == at::kFloat,
          .columns = b.size(is_transposed ? 0 : 1),
          .depth = b.size(is_transposed ? 1 : 0)};
}

void run_into(Product product, const Tensor& a, const Tensor& out, const std::optional<Tensor>& bias,
              const Tensor& addend = {}) {
  product.a = bits(a);
  product.a_stride = a.stride(0);
  product.rows = a.size(0);
  product.bias = bias ? bias->const_data_ptr<float>() : nullptr;
  product.addend = addend.defined() ? addend.const_data_ptr<float>() : nullptr;
  product.out_type = out.scalar_type();
  product.out = out.mutable_data_ptr();
  product.run();
}

Tensor run(const Product& product, const Tensor& a, at::ScalarType out_type, const std::optional<Tensor>& bias,
           const Tensor& addend = {}) {
  TORCH_CHECK_VALUE(out_type == at::kFloat || out_type == at::kBFloat16, "[bf16 product] results are f32 or bf16, not ",
                    c10::toString(out_type));
  const Tensor out = at::empty({a.size(0), product.columns}, a.options().dtype(out_type));
  TORCH_CHECK_VALUE(!addend.defined() || (out_type == at::kFloat && addend.scalar_type() == at::kFloat &&
                                          addend.is_contiguous() && addend.sizes() == out.sizes()),
                    "[bf16 product] expected a contiguous f32 addend ", out.sizes(), " of an f32 result, got ",
                    addend.sizes());
  run_into(product, a, out, bias, addend);
  return out;
}

Tensor multiply(const Tensor& a, const Tensor& b, bool b_is_transposed, at::ScalarType out_type,
                const std::optional<Tensor>& bias, const Tensor& addend = {}) {
  TORCH_CHECK_VALUE(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(b_is_transposed ? 1 : 0),
                    "[bf16 product] sizes do not match: ", a.sizes(), " and ", b.sizes());
  TORCH_CHECK_VALUE(fits_bf16_product(a, b, a.size(1), b.size(b_is_transposed ? 0 : 1)), "[bf16 product] operands ",
                    a.sizes(), " and ", b.sizes(), " are not of a type and size that it takes");
  return run(right_hand_side(b, b_is_transposed), a, out_type, bias, addend);
}

PackedMatrix pack_matrix(const Tensor& b, bool is_transposed) {
  const Product product = right_hand_side(b, is_transposed);
  TORCH_CHECK_VALUE(is_right_hand_side(b) && fits(product.depth, product.columns), "[bf16 product] a matrix ",
                    b.sizes(), " is not of a type and size that it takes");
  const Tensor data = at::empty({product.columns * product.depth}, b.options().dtype(at::kBFloat16));
  auto* out = static_cast<uint16_t*>(data.mutable_data_ptr());
  at::parallel_for(0, (product.columns + kTileColumns - 1) / kTileColumns, 4, [&](int64_t begin, int64_t end) {
    const int64_t column = begin * kTileColumns, column_end = std::min(product.columns, end * kTileColumns);
    product.pack_panel(column, column_end - column, out + column * product.depth);
  });
  return {product.depth, product.columns, data};
}

void check_left_side(const Tensor& a, const PackedMatrix& b) {
  TORCH_CHECK_VALUE(is_left_hand_side(a) && a.size(1) == b.depth, "[bf16 product] expected a bf16 matrix [M, ", b.depth,
                    "], got ", a.sizes());
}

}  // namespace

bool has_bf16_products() {
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                          __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  return has;
}

bool fits_bf16_product(const Tensor& a, const Tensor& b, int64_t summed, int64_t columns) {
  return is_left_hand_side(a) && is_right_hand_side(b) && fits(summed, columns);
}

Tensor product_nt(const Tensor& a_MK, const Tensor& b_NK, at::ScalarType out_type, const std::optional<Tensor>& bias_N,
                  const Tensor& addend_MN) {
  return multiply(a_MK, b_NK, /*b_is_transposed=*/true, out_type, bias_N, addend_MN);
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

Tensor product_nn(const Tensor& a_MK, const Tensor& b_KN, at::ScalarType out_type, const std::optional<Tensor>& bias_N,
                  const Tensor& addend_MN) {
  return multiply(a_MK, b_KN, /*b_is_transposed=*/false, out_type, bias_N, addend_MN);
}

PackedMatrix pack_nt(const Tensor& b_NK) { return pack_matrix(b_NK, /*is_transposed=*/true); }
PackedMatrix pack_nn(const Tensor& b_KN) { return pack_matrix(b_KN, /*is_transposed=*/false); }

Tensor product(const Tensor& a_MK, const PackedMatrix& b, at::ScalarType out_type, const std::optional<Tensor>& bias_N,
               Epilogue epilogue) {
  check_left_side(a_MK, b);
  TORCH_CHECK_VALUE(epilogue == Epilogue::kNone || out_type == at::kBFloat16, "[bf16 product] epilogues give bf16");
  return run({.columns = b.columns, .depth = b.depth, .prepacked = bits(b.data), .epilogue = epilogue}, a_MK, out_type,
             bias_N);
}

void add_product(Tensor& sum_MN, const Tensor& a_MK, const PackedMatrix& b, const std::optional<Tensor>& bias_N) {
  check_left_side(a_MK, b);
  TORCH_CHECK_VALUE(sum_MN.scalar_type() == at::kFloat && sum_MN.is_contiguous() &&
                        sum_MN.sizes() == at::IntArrayRef({a_MK.size(0), b.columns}),
                    "[bf16 product] expected a contiguous f32 sum [", a_MK.size(0), ", ", b.columns, "], got ",
                    sum_MN.sizes());
  run_into({.columns = b.columns, .depth = b.depth, .prepacked = bits(b.data)}, a_MK, sum_MN, bias_N, sum_MN);
}

}  // namespace dalle::layers

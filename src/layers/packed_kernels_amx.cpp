// Products of packed weights on AMX's tiles: 16 rows of 64 bytes each. Panels are packed in the order that its dot products
// read: a tile of weights is 16 steps of 16 columns. Sums stay in tiles 0 to 3, rows are in 4 and 5, weights in 6 and 7.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "packed_kernels_avx512.h"

#define DALLE_AMX __attribute__((target(DALLE_AVX512_TARGET ",amx-tile,amx-bf16,amx-int8")))

namespace dalle::layers::detail {
namespace {

constexpr int64_t kTile = 16;  // rows, steps and columns of a tile
constexpr int64_t kFewRows = 8;
constexpr int64_t kAhead = 8192;  // bytes that few rows, which only wait for memory, ask for ahead of the read

/// The tiles of one call, with as many rows as tiles 4 and 5 have; of the second block there may be none.
class Tiles {
 public:
  DALLE_AMX Tiles(int64_t first_rows, int64_t second_rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const auto set = [&](int tile, int64_t rows) {
      config.rows[tile] = static_cast<uint8_t>(rows);
      config.row_bytes[tile] = rows == 0 ? 0 : 64;
    };
    const int64_t other_sums = second_rows == 0 ? first_rows : second_rows;
    for (const int tile : {0, 1, 4}) set(tile, first_rows);
    for (const int tile : {2, 3}) set(tile, other_sums);
    set(5, second_rows);
    for (const int tile : {6, 7}) set(tile, kTile);
    __asm__ volatile("" : : "r"(&config) : "memory");  // all of it is read
    _tile_loadconfig(&config);
  }
  DALLE_AMX ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

DALLE_AMX void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

struct Block {
  alignas(64) float numbers[kTile * kTile];  // or integers
};

DALLE_AMX void take_sums(Block (&block)[4]) {
  _tile_stored(0, block[0].numbers, 64);
  _tile_stored(1, block[1].numbers, 64);
  _tile_stored(2, block[2].numbers, 64);
  _tile_stored(3, block[3].numbers, 64);
}

// Columns 16 v .. of `rows` rows from `first_row` on.
DALLE_AMX void store_block(const Block& block, int64_t rows, const Sums& sums, int64_t first_row, int64_t v) {
  for (int64_t r = 0; r < rows; ++r) {
    store_sum(_mm512_load_ps(block.numbers + r * kTile), sums, first_row + r, v);
  }
}

// Up to 16 rows by up to 64 columns: every weight is read once, in order.
DALLE_AMX void one_block_bf16(const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* panel, int64_t width,
                              int64_t step_columns, int64_t steps, const Sums& sums) {
  const Tiles tiles(rows, 0);
  zero_sums();
  const int64_t x_bytes = x_stride * 2, step_bytes = step_columns * 4, blocks = width / kTile;
  for (int64_t k = 0; k < steps; k += kTile) {
    const uint16_t* weights = panel + k * step_columns * 2;
    const char* ahead = reinterpret_cast<const char*>(weights) + kAhead;
    const auto ask_for_a_tile = [&] {
      for (int64_t line = 0; rows <= kFewRows && line < kTile; ++line, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T0);
    };
    _tile_loadd(4, x + 2 * k, x_bytes);
    ask_for_a_tile();
    _tile_loadd(6, weights, step_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (blocks == 1) continue;
    ask_for_a_tile();
    _tile_loadd(7, weights + 32, step_bytes);
    _tile_dpbf16ps(1, 4, 7);
    if (blocks == 2) continue;
    ask_for_a_tile();
    _tile_loadd(6, weights + 64, step_bytes);
    _tile_dpbf16ps(2, 4, 6);
    if (blocks == 3) continue;
    ask_for_a_tile();
    _tile_loadd(7, weights + 96, step_bytes);
    _tile_dpbf16ps(3, 4, 7);
  }
  Block block[4];
  take_sums(block);
  for (int64_t v = 0; v < blocks; ++v) store_block(block[v], rows, sums, 0, v);
}

// 17 to 32 rows, 32 columns at a time: each tile that is loaded meets two others.
DALLE_AMX void two_blocks_bf16(const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* panel, int64_t width,
                               int64_t step_columns, int64_t steps, const Sums& sums) {
  const int64_t second_rows = rows - kTile, x_bytes = x_stride * 2, step_bytes = step_columns * 4;
  const uint16_t* x_second = x + kTile * x_stride;
  const Tiles tiles(kTile, second_rows);
  for (int64_t v = 0; v < width / kTile; v += 2) {
    const bool is_pair = (v + 1) * kTile < width;
    zero_sums();
    for (int64_t k = 0; k < steps; k += kTile) {
      const uint16_t* weights = panel + (k * step_columns + v * kTile) * 2;
      _tile_loadd(4, x + 2 * k, x_bytes);
      _tile_loadd(5, x_second + 2 * k, x_bytes);
      _tile_loadd(6, weights, step_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      if (!is_pair) continue;
      _tile_loadd(7, weights + 32, step_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    Block block[4];
    take_sums(block);
    for (int64_t b = 0; b < (is_pair ? 2 : 1); ++b) {
      store_block(block[b], kTile, sums, 0, v + b);
      store_block(block[2 + b], second_rows, sums, kTile, v + b);
    }
  }
}

DALLE_AMX void tile_bf16(const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* panel, int64_t width,
                         int64_t step_columns, int64_t steps, const Sums& sums) {
  const auto run = rows <= kTile ? one_block_bf16 : two_blocks_bf16;
  run(x, x_stride, rows, panel, width, step_columns, steps, sums);
}

DALLE_AMX void store_joined(const Block& high, const Block& low, const int8_t* heads, int64_t rows, const Sums& sums,
                            int64_t v) {
  for (int64_t r = 0; r < rows; ++r) {
    store_sum(joined(_mm512_load_si512(high.numbers + r * kTile), _mm512_load_si512(low.numbers + r * kTile),
                     _mm512_loadu_si512(heads + v * 64)),
              sums, r, v);
  }
}

// Up to 16 rows, 32 columns at a time: high bytes in tile 4, low ones in 5.
DALLE_AMX void tile_int8(const uint8_t* x, int64_t x_stride, int64_t rows, const int8_t* panel, int64_t width,
                         int64_t step_columns, int64_t steps, const Sums& sums) {
  const Tiles tiles(rows, rows);
  const int64_t step_bytes = step_columns * 4;
  for (int64_t v = 0; v < width / kTile; v += 2) {
    const bool is_pair = (v + 1) * kTile < width;
    zero_sums();
    for (int64_t k = 0; k < steps; k += kTile) {
      const int8_t* weights = panel + (1 + k) * step_bytes + v * 64;  // after the heads
      _tile_loadd(4, x + 4 * k, x_stride);
      _tile_loadd(5, x + x_stride / 2 + 4 * k, x_stride);
      _tile_loadd(6, weights, step_bytes);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(2, 5, 6);
      if (!is_pair) continue;
      _tile_loadd(7, weights + 64, step_bytes);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(3, 5, 7);
    }
    Block block[4];
    take_sums(block);
    for (int64_t b = 0; b < (is_pair ? 2 : 1); ++b) store_joined(block[b], block[2 + b], panel, rows, sums, v + b);
  }
}

// Whether the processor has it, and the system lets this process use it.
bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (~d & (kBf16 | kTiles | kInt8)) != 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2): ARCH_REQ_XCOMP_PERM
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

// One row alone reads its int8 weights as fast by AVX-512, with the same result to the bit: those sums are exact. Sums of bf16
// are rounded in another order there, so every row goes by tiles.
ProductKernelSet amx_kernels(const ProductKernelSet& avx512) {
  if (avx512.int8.pair == nullptr || !has_amx()) return avx512;
  return {.f32 = avx512.f32,
          .bf16 = {.tile = tile_bf16, .tile_rows = 2 * kTile},
          .int8 = {.tile = tile_int8, .tile_rows = kTile, .pair = avx512.int8.pair}};
}

}  // namespace dalle::layers::detail

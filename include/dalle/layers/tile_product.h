// Tiles of bf16 matrix products with f32 sums, the innermost loops of bf16_product.cpp, conv_kernel_gradient.cpp and
// winograd.cpp: oneDNN's kernels through ATen's brgemm where the processor has AMX; where it has AVX-512's dot products
// alone, own ones, which keep a tile's sums in registers up to their last form and read a left-hand side that lies in
// pairs. Only where has_bf16_products().
#pragma once

#include <cstdint>

namespace dalle::layers::detail {

/// Whose kernels tile_product() takes.
enum class Tiles { kOneDnn, kOwn };
Tiles tiles();

/// Takes the place of that choice, in all threads, as long as it lives: for tests, which see both kinds on any processor.
class OtherTiles {
 public:
  explicit OtherTiles(Tiles tiles);
  ~OtherTiles();
  OtherTiles(const OtherTiles&) = delete;
  OtherTiles& operator=(const OtherTiles&) = delete;

 private:
  int before_;
};

/// Columns of a right-hand side that lie together, at most.
inline constexpr int64_t kTileColumns = 64;

/// c [m, n] = a b, or c += a b. a [m, depth] row by row, `lda` numbers apart; b in pairs [depth / 2, n, 2] (bf16_pack.h);
/// c with `ldc` numbers from row to row. depth even, n a multiple of 16 up to kTileColumns.
void tile_product(int64_t m, int64_t n, int64_t depth, const uint16_t* a, int64_t lda, const uint16_t* b, float* c,
                  int64_t ldc, bool adds);
/// After the last of them in a thread, where AMX's tiles are to be given back.
void release_tiles();

/// A left-hand side of the own kernels: pair k of row m lies at data + m row + k pair.
struct TileRows {
  const uint16_t* data;
  int64_t row;
  int64_t pair = 2;  // row by row
};

/// What is added to the own kernels' sums: numbers `stride` apart from row to row, and one for each column. Null: none.
struct TileAddend {
  const float* data = nullptr;
  int64_t stride = 0;
  const float* bias = nullptr;
};

/// Where the sums go, in f32 or rounded to bf16: numbers from row to row.
struct TileSums {
  void* at = nullptr;
  int64_t stride = 0;
  bool is_bf16 = false;
};

/// Lines of 64 bytes to be fetched into the second cache meanwhile: one for each row and each kAheadDepth of the depth, at
/// data + row `row` + step `step`. Null: none.
struct LinesAhead {
  const uint16_t* data = nullptr;
  int64_t row = 0, step = 0;
};
inline constexpr int64_t kAheadDepth = 32;
/// Numbers of such a line.
inline constexpr int64_t kLine = 32;

/// What is read next and the last cache has, a left-hand side, a right-hand side or what becomes one: a processor's own
/// prefetching starts anew with every row. Lines may lie beyond the end: nothing of them is used.
struct TileAhead {
  LinesAhead a, b;
};

/// sums = a b + addend by the own kernels, whatever tiles() are. f32 sums may be added to themselves.
void own_tile_product(int64_t m, int64_t n, int64_t depth, const TileRows& a, const uint16_t* b,
                      const TileAddend& addend, const TileSums& sums, const TileAhead& ahead = {});

}  // namespace dalle::layers::detail

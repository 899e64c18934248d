#include "dalle/layers/tile_product.h"

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "dalle/core/avx512.h"
#include "dalle/core/device.h"

namespace dalle::layers::detail {
namespace {

constexpr int kTileRows = 6;  // by 4 registers of columns: 24 sums

std::atomic<int> chosen{-1};  // Tiles, or what the processor wants

DALLE_AVX512_BF16_PART __m512bh pair_everywhere(const uint16_t* at) {
  int32_t pair;
  std::memcpy(&pair, at, sizeof pair);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

template <bool kIsBf16>
DALLE_AVX512_BF16_PART void store(__m512 sum, void* to, int64_t at) {
  if constexpr (kIsBf16) {
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(to) + at), rounded);
  } else {
    _mm512_storeu_ps(static_cast<float*>(to) + at, sum);
  }
}

// Arguments of every tile of a product. Read field by field: a copy of what was just written field by field would wait for
// all stores before it.
struct Operands {
  int64_t pairs;
  const TileRows& a;
  const uint16_t* b;
  const TileAddend& addend;
  const TileSums& sums;
  const TileAhead& ahead;
};

template <int M>
void fetch(const LinesAhead& lines, int64_t row, int64_t step) {
  if (lines.data == nullptr) return;
  const uint16_t* line = lines.data + row * lines.row + step * lines.step;
  for (int m = 0; m < M; ++m, line += lines.row) __builtin_prefetch(line, /*rw=*/0, /*locality=*/2);
}

// M rows by V registers of columns, and the next M rows, `count` times; from row `row` on.
template <int M, int V, bool kIsBf16>
DALLE_AVX512_BF16 void run_tiles(int64_t row, int64_t count, const Operands& operands) {
  const auto& [pairs, a, b, addend, sums, ahead] = operands;
  constexpr int64_t kStep = kAheadDepth / 2;
  for (; count > 0; --count, row += M) {
    __m512 sum[M][V];
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) sum[m][v] = _mm512_setzero_ps();
    }
    const float* added = addend.data == nullptr ? nullptr : addend.data + row * addend.stride;
    if (addend.bias != nullptr) {
      DALLE_UNROLLED
      for (int v = 0; v < V; ++v) {
        const __m512 bias = _mm512_loadu_ps(addend.bias + v * 16);
        DALLE_UNROLLED
        for (int m = 0; m < M; ++m) sum[m][v] = _mm512_add_ps(sum[m][v], bias);
      }
    }
    // Of three rows each: addresses that fit the registers.
    const uint16_t* rows[2] = {a.data + row * a.row, a.data + (row + (M > 3 ? 3 : 0)) * a.row};
    const uint16_t* packed = b;
    for (int64_t step = 0; step * kStep < pairs; ++step) {
      // A few at a time: many at once would keep the loads below waiting.
      fetch<M>(ahead.a, row, step);
      fetch<M>(ahead.b, row, step);
      if (added != nullptr && step < M) {
        for (int v = 0; v < V; ++v) __builtin_prefetch(added + step * addend.stride + v * 16);
      }
      const int64_t end = std::min(pairs, (step + 1) * kStep);
      for (int64_t k = step * kStep; k < end; ++k, packed += 32 * V, rows[0] += a.pair, rows[1] += a.pair) {
        __m512bh column[V];
        for (int v = 0; v < V; ++v) column[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(packed + v * 32));
        for (int m = 0; m < M; ++m) {
          const __m512bh pair = pair_everywhere(rows[m / 3] + m % 3 * a.row);
          for (int v = 0; v < V; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], column[v], pair);
        }
      }
    }
    // Last, so that a large number costs the sum one rounding and not one for each step.
    if (added != nullptr) {
      DALLE_UNROLLED
      for (int m = 0; m < M; ++m) {
        DALLE_UNROLLED
        for (int v = 0; v < V; ++v) {
          sum[m][v] = _mm512_add_ps(sum[m][v], _mm512_loadu_ps(added + m * addend.stride + v * 16));
        }
      }
    }
    DALLE_UNROLLED
    for (int m = 0; m < M; ++m) {
      DALLE_UNROLLED
      for (int v = 0; v < V; ++v) store<kIsBf16>(sum[m][v], sums.at, (row + m) * sums.stride + v * 16);
    }
  }
}

using RunTiles = void (*)(int64_t row, int64_t count, const Operands& operands);

template <bool kIsBf16>
RunTiles tiles_of(int64_t rows, int64_t registers) {
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<RunTiles, sizeof...(I)>{run_tiles<I / 4 + 1, I % 4 + 1, kIsBf16>...};
  }
  (std::make_integer_sequence<int, kTileRows * 4>());
  return table[static_cast<size_t>((rows - 1) * 4 + registers - 1)];
}

}  // namespace

Tiles tiles() {
  static const Tiles wanted = cpu_has_amx() ? Tiles::kOneDnn : Tiles::kOwn;
  const int other = chosen.load(std::memory_order_relaxed);
  return other < 0 ? wanted : static_cast<Tiles>(other);
}

OtherTiles::OtherTiles(Tiles tiles) : before_(chosen.exchange(static_cast<int>(tiles))) {}
OtherTiles::~OtherTiles() { chosen = before_; }

void own_tile_product(int64_t m, int64_t n, int64_t depth, const TileRows& a, const uint16_t* b,
                      const TileAddend& addend, const TileSums& sums, const TileAhead& ahead) {
  const Operands operands{depth / 2, a, b, addend, sums, ahead};
  // What whole tiles leave over is shared with the last of them: the few sums of a single row would wait for each other.
  const int64_t whole = m % kTileRows == 0 ? m / kTileRows : std::max<int64_t>(0, m / kTileRows - 1);
  const int64_t rest = m - whole * kTileRows, half = rest > kTileRows ? rest / 2 : 0;
  const auto run = [&](int64_t row, int64_t rows, int64_t count) {
    if (rows == 0) return;
    (sums.is_bf16 ? tiles_of<true> : tiles_of<false>)(rows, n / 16)(row, count, operands);
  };
  run(0, kTileRows, whole);
  run(whole * kTileRows, half, 1);
  run(whole * kTileRows + half, rest - half, 1);
}

void tile_product(int64_t m, int64_t n, int64_t depth, const uint16_t* a, int64_t lda, const uint16_t* b, float* c,
                  int64_t ldc, bool adds) {
  if (tiles() == Tiles::kOwn) {
    return own_tile_product(m, n, depth, {a, lda}, b, adds ? TileAddend{c, ldc} : TileAddend{}, {c, ldc});
  }
  at::native::cpublas::brgemm(m, n, depth, lda, n, ldc, adds, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c);
}

void release_tiles() {
  if (tiles() == Tiles::kOneDnn) at::native::cpublas::brgemm_release();
}

}  // namespace dalle::layers::detail

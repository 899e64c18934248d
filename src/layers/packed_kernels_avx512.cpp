// Tiles of up to 6 rows (int8: 3, with two sums for each number) by 64 columns whose 24 sums stay in registers. A step along
// the depth loads 4 registers of weights and one number (or pair, or four) of each row.
#include <array>
#include <cstring>
#include <utility>

#include "packed_kernels_avx512.h"

namespace dalle::layers::detail {
namespace {

// Bytes ahead of the read that one row, which only waits for memory, asks for.
constexpr int64_t kAhead = 4096;

void ask_for(const void* weights, int64_t ahead) {
  _mm_prefetch(static_cast<const char*>(weights) + ahead, _MM_HINT_T0);
}

// One panel, or two for a single row, whose registers are the first 4 and the last 4 of 8.
template <int V, class Weight, bool kTogether = false>
struct Panels {
  static constexpr int64_t kStep = 64 / sizeof(Weight);  // numbers of one register
  const Weight* first;
  const Weight* second;  // read only where V is 8
  int64_t step_columns;  // see TileKernel; of two panels the kernel knows it

  const Weight* at(int v) const { return v < 4 ? first + v * kStep : second + (v - 4) * kStep; }
  void advance() {
    const int64_t step = (V < 8 ? step_columns / 16 : kTogether ? 8 : 4) * kStep;
    first += step;
    if (V > 4) second += step;
  }
};

// The step from which on what is asked for lies behind the jump: a step of a panel reads 256 bytes.
int64_t last_before_jump(int64_t steps) { return steps - kAhead / 256; }

template <int M, int V>
DALLE_AVX512 void tile_f32(const float* x, int64_t x_stride, const float* first, const float* second,
                           int64_t step_columns, int64_t steps, int64_t jump, const Sums& sums) {
  __m512 acc[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) acc[m][v] = _mm512_setzero_ps();
  }
  Panels<V, float> panels{first, second, step_columns};
  for (int64_t k = 0; k < steps; ++k, panels.advance()) {
    __m512 b[V];
    const int64_t ahead = k < last_before_jump(steps) ? kAhead : kAhead + jump;
    for (int v = 0; v < V; ++v) {
      b[v] = _mm512_loadu_ps(panels.at(v));
      if (M == 1) ask_for(panels.at(v), ahead);
    }
    for (int m = 0; m < M; ++m) {
      const __m512 a = _mm512_set1_ps(x[m * x_stride + k]);
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_fmadd_ps(a, b[v], acc[m][v]);
    }
  }
  DALLE_UNROLLED
  for (int m = 0; m < M; ++m) {
    DALLE_UNROLLED
    for (int v = 0; v < V; ++v) store_sum(acc[m][v], sums, m, v);
  }
}

int32_t word_at(const void* x) {
  int32_t word;
  std::memcpy(&word, x, sizeof word);
  return word;
}

template <int M, int V>
DALLE_AVX512_BF16 void tile_bf16(const uint16_t* x, int64_t x_stride, const uint16_t* first, const uint16_t* second,
                                 int64_t step_columns, int64_t steps, int64_t jump, const Sums& sums) {
  __m512 acc[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) acc[m][v] = _mm512_setzero_ps();
  }
  Panels<V, uint16_t> panels{first, second, step_columns};
  for (int64_t k = 0; k < steps; ++k, panels.advance()) {
    __m512bh b[V];
    const int64_t ahead = k < last_before_jump(steps) ? kAhead : kAhead + jump;
    for (int v = 0; v < V; ++v) {
      b[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panels.at(v)));
      if (M == 1) ask_for(panels.at(v), ahead);
    }
    for (int m = 0; m < M; ++m) {
      const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(word_at(x + m * x_stride + 2 * k)));
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], b[v], a);
    }
  }
  DALLE_UNROLLED
  for (int m = 0; m < M; ++m) {
    DALLE_UNROLLED
    for (int v = 0; v < V; ++v) store_sum(acc[m][v], sums, m, v);
  }
}

// Sums by lane: GCC 12 keeps arrays of __m512i, whose lanes it takes for 64-bit ones, in memory besides.
using Int32s = int32_t __attribute__((vector_size(64)));

DALLE_AVX512_VNNI_PART Int32s add_products(Int32s sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  const auto lanes = reinterpret_cast<__m512i>(sum);
  return reinterpret_cast<Int32s>(_mm512_dpbusd_epi32(lanes, unsigned_bytes, signed_bytes));
}

template <int M, int V>
DALLE_AVX512_VNNI void tile_int8(const uint8_t* x, int64_t x_stride, const int8_t* first, const int8_t* second,
                                 int64_t step_columns, int64_t steps, int64_t jump, const Sums& sums) {
  Int32s high[M][V], low[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      high[m][v] = Int32s{};
      low[m][v] = Int32s{};
    }
  }
  Panels<V, int8_t, /*kTogether=*/true> panels{first, second, step_columns};
  panels.advance();  // past what is taken off in the end
  for (int64_t k = 0; k < steps; ++k, panels.advance()) {
    __m512i b[V];
    const int64_t ahead = k < last_before_jump(steps) ? kAhead : kAhead + jump;
    for (int v = 0; v < V; ++v) {
      b[v] = _mm512_loadu_si512(panels.at(v));
      if (M == 1) ask_for(panels.at(v), ahead);
      __asm__("" : "+v"(b[v]));  // loaded once: GCC would read it again for the low bytes
    }
    for (int m = 0; m < M; ++m) {
      const uint8_t* four = x + m * x_stride + 4 * k;
      const __m512i a_high = _mm512_set1_epi32(word_at(four));
      const __m512i a_low = _mm512_set1_epi32(word_at(four + x_stride / 2));
      for (int v = 0; v < V; ++v) high[m][v] = add_products(high[m][v], a_high, b[v]);
      for (int v = 0; v < V; ++v) low[m][v] = add_products(low[m][v], a_low, b[v]);
    }
  }
  const Panels<V, int8_t> begin{first, second, step_columns};
  DALLE_UNROLLED
  for (int m = 0; m < M; ++m) {
    DALLE_UNROLLED
    for (int v = 0; v < V; ++v) {
      store_sum(joined(reinterpret_cast<__m512i>(high[m][v]), reinterpret_cast<__m512i>(low[m][v]),
                       _mm512_loadu_si512(begin.at(v))),
                sums, m, v);
    }
  }
}

// Rows and registers a row that one tile of each format takes: 24 sums in registers.
template <int M, int V>
struct F32Tile {
  static constexpr int64_t kRows = 6;
  static constexpr auto run = tile_f32<M, V>;
};
template <int M, int V>
struct Bf16Tile {
  static constexpr int64_t kRows = 6;
  static constexpr auto run = tile_bf16<M, V>;
};
template <int M, int V>
struct Int8Tile {
  static constexpr int64_t kRows = 3;
  static constexpr auto run = tile_int8<M, V>;
};

// The tile for a number of rows and of registers a row; more rows than a tile has in two halves.
template <template <int, int> class Tile, class Row, class Weight>
void dispatch(const Row* x, int64_t x_stride, int64_t rows, const Weight* panel, int64_t width, int64_t step_columns,
              int64_t steps, const Sums& sums) {
  constexpr int64_t kRows = Tile<1, 1>::kRows;
  static_assert(2 * kRows >= Kernels<Row, Weight>{}.tile_rows);
  using Function = void (*)(const Row*, int64_t, const Weight*, const Weight*, int64_t, int64_t, int64_t, const Sums&);
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Function, sizeof...(I)>{Tile<I / 4 + 1, I % 4 + 1>::run...};
  }
  (std::make_integer_sequence<int, static_cast<int>(kRows) * 4>());
  const auto run = [&](const Row* some, int64_t count, const Sums& to) {
    table[static_cast<size_t>((count - 1) * 4 + width / 16 - 1)](some, x_stride, panel, nullptr, step_columns, steps,
                                                                 /*jump=*/0, to);
  };
  if (rows <= kRows) return run(x, rows, sums);
  const int64_t half = rows / 2;
  run(x, half, sums);
  Sums rest = sums;
  rest.at += half * rest.stride;
  if (rest.row_scale != nullptr) rest.row_scale += half;
  run(x + half * x_stride, rows - half, rest);
}

template <template <int, int> class Tile, class Row, class Weight>
void pair(const Row* x, int64_t x_stride, const Weight* first, const Weight* second, int64_t steps, int64_t jump,
          const Sums& sums) {
  Tile<1, 8>::run(x, x_stride, first, second, /*step_columns=*/0, steps, jump, sums);
}

template <template <int, int> class Tile, class Row, class Weight>
Kernels<Row, Weight> kernels_if(bool has) {
  if (!has) return {};
  return {.tile = dispatch<Tile, Row, Weight>, .pair = pair<Tile, Row, Weight>};
}

}  // namespace

ProductKernelSet avx512_kernels() {
  const bool has = __builtin_cpu_supports("x86-64-v4") != 0;
  return {.f32 = kernels_if<F32Tile, float, float>(has),
          .bf16 = kernels_if<Bf16Tile, uint16_t, uint16_t>(has && __builtin_cpu_supports("avx512bf16") != 0),
          .int8 = kernels_if<Int8Tile, uint8_t, int8_t>(has && __builtin_cpu_supports("avx512vnni") != 0)};
}

}  // namespace dalle::layers::detail

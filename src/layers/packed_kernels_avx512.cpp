// Tiles of up to 6 rows by 64 columns whose 24 sums stay in registers. A step along the depth loads 4 registers of weights
// and one number (or pair) of each row.
#include <array>
#include <cstring>
#include <utility>

#include "dalle/core/avx512.h"
#include "packed_kernels.h"

namespace dalle::layers::detail {
namespace {

// Bytes ahead of the read that one row, which only waits for memory, asks for.
constexpr int64_t kAhead = 8192;

void ask_for(const void* weights) { _mm_prefetch(static_cast<const char*>(weights) + kAhead, _MM_HINT_T0); }

__attribute__((target("avx512f"), always_inline)) inline void store_sum(__m512 part, float* sum, bool adds) {
  _mm512_storeu_ps(sum, adds ? _mm512_add_ps(_mm512_loadu_ps(sum), part) : part);
}

template <int M, int V>
DALLE_AVX512 void tile_f32(const float* x, int64_t x_stride, const float* w, int64_t steps, float* sum, bool adds) {
  __m512 acc[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) acc[m][v] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < steps; ++k, w += V * 16) {
    __m512 b[V];
    for (int v = 0; v < V; ++v) {
      b[v] = _mm512_loadu_ps(w + v * 16);
      if (M == 1) ask_for(w + v * 16);
    }
    for (int m = 0; m < M; ++m) {
      const __m512 a = _mm512_set1_ps(x[m * x_stride + k]);
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_fmadd_ps(a, b[v], acc[m][v]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) store_sum(acc[m][v], sum + m * kPanelColumns + v * 16, adds);
  }
}

int32_t pair_at(const void* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return pair;
}

template <int M, int V>
DALLE_AVX512_BF16 void tile_bf16(const uint16_t* x, int64_t x_stride, const uint16_t* w, int64_t steps, float* sum,
                                 bool adds) {
  __m512 acc[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) acc[m][v] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < steps; ++k, w += V * 32) {
    __m512bh b[V];
    for (int v = 0; v < V; ++v) {
      b[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + v * 32));
      if (M == 1) ask_for(w + v * 32);
    }
    for (int m = 0; m < M; ++m) {
      const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair_at(x + m * x_stride + 2 * k)));
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], b[v], a);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) store_sum(acc[m][v], sum + m * kPanelColumns + v * 16, adds);
  }
}

template <int M, int V>
DALLE_AVX512_VNNI void tile_int8(const int16_t* x, int64_t x_stride, const int8_t* w, int64_t steps, float* sum,
                                 bool adds) {
  __m512i acc[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) acc[m][v] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < steps; ++k, w += V * 32) {
    __m512i b[V];
    for (int v = 0; v < V; ++v) {
      b[v] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + v * 32)));
    }
    if (M == 1) {
      ask_for(w);
      if (V > 2) ask_for(w + 64);
    }
    for (int m = 0; m < M; ++m) {
      const __m512i a = _mm512_set1_epi32(pair_at(x + m * x_stride + 2 * k));
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_dpwssd_epi32(acc[m][v], b[v], a);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      store_sum(_mm512_cvtepi32_ps(acc[m][v]), sum + m * kPanelColumns + v * 16, adds);
    }
  }
}

template <int M, int V>
struct F32Tile {
  static constexpr auto run = tile_f32<M, V>;
};
template <int M, int V>
struct Bf16Tile {
  static constexpr auto run = tile_bf16<M, V>;
};
template <int M, int V>
struct Int8Tile {
  static constexpr auto run = tile_int8<M, V>;
};

// The tile for a number of rows and of registers a row.
template <template <int, int> class Tile, class Row, class Weight>
void dispatch(const Row* x, int64_t x_stride, int64_t rows, const Weight* panel, int64_t width, int64_t steps,
              float* sum, bool adds) {
  using Function = void (*)(const Row*, int64_t, const Weight*, int64_t, float*, bool);
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    return std::array<Function, sizeof...(I)>{Tile<I / 4 + 1, I % 4 + 1>::run...};
  }
  (std::make_integer_sequence<int, static_cast<int>(kTileRows) * 4>());
  table[static_cast<size_t>((rows - 1) * 4 + width / 16 - 1)](x, x_stride, panel, steps, sum, adds);
}

}  // namespace

TileKernels avx512_kernels() {
  const bool has = __builtin_cpu_supports("x86-64-v4") != 0;
  const bool has_bf16 = has && __builtin_cpu_supports("avx512bf16") != 0;
  const bool has_int8 = has && __builtin_cpu_supports("avx512vnni") != 0;
  return {.f32 = has ? dispatch<F32Tile, float, float> : nullptr,
          .bf16 = has_bf16 ? dispatch<Bf16Tile, uint16_t, uint16_t> : nullptr,
          .int8 = has_int8 ? dispatch<Int8Tile, int16_t, int8_t> : nullptr};
}

}  // namespace dalle::layers::detail

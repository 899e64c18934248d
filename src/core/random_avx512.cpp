// Eight blocks lie in the 64-bit lanes of a register for each of the counter's four words, so that a product of two words is
// one instruction. What the upper half of a lane holds between rounds matters to nobody: products read the lower one.
#include "random_avx512.h"

#include "dalle/core/avx512.h"

namespace dalle::detail {
namespace {

constexpr int kRounds = 10;
constexpr int kXor = 0x96;  // of three operands

struct RoundKeys {
  __m512i first[kRounds], second[kRounds];
};

DALLE_AVX512_PART RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
    keys.first[round] = _mm512_set1_epi64(static_cast<int64_t>(k0));
    keys.second[round] = _mm512_set1_epi64(static_cast<int64_t>(k1));
  }
  return keys;
}

struct Blocks {
  __m512i words01, words23;  // in each 64-bit lane the two words of one block
};

DALLE_AVX512_PART __m512i pair_words(__m512i even, __m512i odd) {
  return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

// 8 N blocks from `first` on: N registers at a time, for a round waits for the one before it.
template <int N>
DALLE_AVX512_PART void philox(uint64_t first, uint64_t stream, const RoundKeys& keys, Blocks (&blocks)[N]) {
  const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53), multiplier1 = _mm512_set1_epi64(0xCD9E8D57);
  __m512i c0[N], c1[N], c2[N], c3[N];
  for (int n = 0; n < N; ++n) {
    c0[n] = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first + 8 * static_cast<uint64_t>(n))),
                             _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    c1[n] = _mm512_srli_epi64(c0[n], 32);
    c2[n] = _mm512_set1_epi64(static_cast<int64_t>(stream));
    c3[n] = _mm512_srli_epi64(c2[n], 32);
  }
  for (int round = 0; round < kRounds; ++round) {
    for (int n = 0; n < N; ++n) {
      const __m512i product0 = _mm512_mul_epu32(c0[n], multiplier0), product1 = _mm512_mul_epu32(c2[n], multiplier1);
      c0[n] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c1[n], keys.first[round], kXor);
      c2[n] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c3[n], keys.second[round], kXor);
      c1[n] = product1;
      c3[n] = product0;
    }
  }
  for (int n = 0; n < N; ++n) blocks[n] = {pair_words(c0[n], c1[n]), pair_words(c2[n], c3[n])};
}

DALLE_AVX512_PART __m512i largest_words(const Blocks& a, const Blocks& b) {
  return _mm512_max_epu32(_mm512_max_epu32(a.words01, a.words23), _mm512_max_epu32(b.words01, b.words23));
}

// A number rises with its word, so the largest word makes the largest number.
DALLE_AVX512_PART float largest_unit(__m512i words) {
  return (static_cast<float>(_mm512_reduce_max_epu32(words) >> 9) + 0.5f) * 0x1p-23f;
}

// to_unit() of random.cpp; every step is exact.
DALLE_AVX512_PART __m512 to_unit(__m512i words) {
  const __m512 upper_bits = _mm512_cvtepi32_ps(_mm512_srli_epi32(words, 9));
  return _mm512_mul_ps(_mm512_add_ps(upper_bits, _mm512_set1_ps(0.5f)), _mm512_set1_ps(0x1p-23f));
}

}  // namespace

bool has_random_avx512() {
  static const bool has = __builtin_cpu_supports("x86-64-v4") != 0;
  return has;
}

DALLE_AVX512 void uniform_chunk_avx512(RandomKey key, int64_t chunk, float* out) {
  const RoundKeys keys = round_keys(key.seed);
  const __m512i blocks_0_to_3 = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
  const __m512i blocks_4_to_7 = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
  Blocks halves[2];
  philox(static_cast<uint64_t>(16 * chunk), key.stream, keys, halves);
  for (const Blocks& half : halves) {
    const auto words = [&](__m512i order)
                           DALLE_AVX512 { return _mm512_permutex2var_epi64(half.words01, order, half.words23); };
    _mm512_storeu_ps(out, to_unit(words(blocks_0_to_3)));
    _mm512_storeu_ps(out + 16, to_unit(words(blocks_4_to_7)));
    out += kChunk / 2;
  }
}

DALLE_AVX512 void largest_uniforms_avx512(RandomKey key, int64_t first, int64_t count, float* largest) {
  const RoundKeys keys = round_keys(key.seed);
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    Blocks blocks[4];
    philox(static_cast<uint64_t>(16 * (first + i)), key.stream, keys, blocks);
    largest[i] = largest_unit(largest_words(blocks[0], blocks[1]));
    largest[i + 1] = largest_unit(largest_words(blocks[2], blocks[3]));
  }
  if (i == count) return;
  Blocks blocks[2];
  philox(static_cast<uint64_t>(16 * (first + i)), key.stream, keys, blocks);
  largest[i] = largest_unit(largest_words(blocks[0], blocks[1]));
}

}  // namespace dalle::detail

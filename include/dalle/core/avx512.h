// AVX-512 by intrinsics: for files whose functions are called only where the processor has the instructions, whatever the
// rest is compiled for. Included by .cpp files alone.
#pragma once

#include <immintrin.h>

// GCC 12's own header starts from registers that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define DALLE_AVX512_TARGET "avx512f,avx512bw,avx512vl,avx512dq"

/// A function, and a part that such functions share, which must be inlined into them.
#define DALLE_AVX512 __attribute__((target(DALLE_AVX512_TARGET)))
#define DALLE_AVX512_PART __attribute__((target(DALLE_AVX512_TARGET), always_inline)) inline

/// The same with dot products of bf16 or of 8- and 16-bit integers.
#define DALLE_AVX512_BF16 __attribute__((target(DALLE_AVX512_TARGET ",avx512bf16")))
#define DALLE_AVX512_BF16_PART __attribute__((target(DALLE_AVX512_TARGET ",avx512bf16"), always_inline)) inline
#define DALLE_AVX512_VNNI __attribute__((target(DALLE_AVX512_TARGET ",avx512vnni")))
#define DALLE_AVX512_VNNI_PART __attribute__((target(DALLE_AVX512_TARGET ",avx512vnni"), always_inline)) inline

/// Before a loop that stores an array of registers: unrolled early, so that GCC 12 never keeps the array in memory. It would
/// store and load all of it there besides, which takes a third of the time of a product over a depth of 32.
#define DALLE_UNROLLED _Pragma("GCC unroll 8")

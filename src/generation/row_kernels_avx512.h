// Private to decode_kernels.cpp and token_draw.cpp: loops over a row's numbers by AVX-512, where has_row_avx512().
#pragma once

#include <cstdint>

namespace dalle::generation::detail {

bool has_row_avx512();

/// x = x Phi(x) with the normal distribution function; absolute error below 3e-7 max(1, |x|), and 1e-6 where x < 0.
void avx512_gelu(int64_t size, float* x);

/// The sum of exp(x - shift), where shift is the largest x.
float avx512_sum_of_exponentials(const float* x, int64_t size, float shift);

}  // namespace dalle::generation::detail

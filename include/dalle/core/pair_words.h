// Random words for pairs (row, column) of a stream, in any order, for kernels in which ten rounds of Philox (core/random.h)
// would take longer than all the rest: two rounds of a 32-bit mixer (Wellons 2018, "lowbias32") with 64 bits of key for
// each row. Part of the reproducibility contract, as the words of core/random.h are.
#pragma once

#include <cstdint>

#include "dalle/core/random.h"

namespace dalle {

/// The key of one row.
struct PairRow {
  uint32_t first = 0, second = 0;
};
PairRow pair_row(RandomKey key, uint64_t row);

inline uint32_t mix_word(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

/// Uniform over 32 bits. Without branches or calls, so that loops over columns vectorise.
inline uint32_t pair_word(PairRow row, uint32_t column) { return mix_word(mix_word(column ^ row.first) ^ row.second); }

}  // namespace dalle

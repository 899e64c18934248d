#include "dalle/core/pair_words.h"

namespace dalle {

PairRow pair_row(RandomKey key, uint64_t row) {
  // A stream's name mixes its parts.
  const uint64_t of_stream = random_key(0, Purpose::kDropout, key.seed, key.stream).stream;
  const uint64_t bits = random_key(0, Purpose::kDropout, of_stream, row).stream;
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

}  // namespace dalle

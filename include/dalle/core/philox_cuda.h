// Philox4x32-10 and its uniform numbers for CUDA kernels: the words that core/random.h gives on the CPU. Only .cu files
// include this.
#pragma once

#include <cstdint>

namespace dalle::detail {

__device__ inline uint4 philox_block(uint4 counter, uint2 key) {
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

/// Block number `block` of a stream: its elements 4 block ... 4 block + 3.
__device__ inline uint4 stream_block(int64_t seed, int64_t stream, uint64_t block) {
  const auto key = static_cast<uint64_t>(seed), name = static_cast<uint64_t>(stream);
  const uint4 counter = make_uint4(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                   static_cast<uint32_t>(name), static_cast<uint32_t>(name >> 32));
  return philox_block(counter, make_uint2(static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)));
}

/// The centre of one of 2^23 equal cells of (0, 1): neither 0 nor 1, and exact in f32.
__device__ inline float to_uniform(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

}  // namespace dalle::detail

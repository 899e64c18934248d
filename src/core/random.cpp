#include "dalle/core/random.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "dalle/core/device.h"
#include "dalle/core/random_cuda.h"
#include "dalle/core/random_fill.h"
#include "dalle/core/vector_math.h"
#include "random_avx512.h"

namespace dalle {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

// The finaliser of SplitMix64 (Steele et al. 2014): a bijective mixer of 64 bits.
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

constexpr int64_t kLanes = 16;  // blocks computed side by side, so that the compiler can use vector registers

using detail::kChunk;
static_assert(kChunk == 4 * kLanes);

// Words of the blocks first .. first + kLanes - 1 of one stream, transposed: words[w][lane].
[[gnu::always_inline]] inline void philox_lanes(uint64_t first, RandomKey key, uint32_t (&words)[4][kLanes]) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const uint64_t block = first + static_cast<uint64_t>(lane);
    c0[lane] = static_cast<uint32_t>(block);
    c1[lane] = static_cast<uint32_t>(block >> 32);
    c2[lane] = static_cast<uint32_t>(key.stream);
    c3[lane] = static_cast<uint32_t>(key.stream >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const uint64_t product0 = uint64_t{kMultiplier0} * c0[lane];
      const uint64_t product1 = uint64_t{kMultiplier1} * c2[lane];
      const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1[lane] ^ k0;
      const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3[lane] ^ k1;
      c1[lane] = static_cast<uint32_t>(product1);
      c3[lane] = static_cast<uint32_t>(product0);
      c0[lane] = next0;
      c2[lane] = next2;
    }
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    words[0][lane] = c0[lane];
    words[1][lane] = c1[lane];
    words[2][lane] = c2[lane];
    words[3][lane] = c3[lane];
  }
}

float to_unit(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

// Elements of chunk number `chunk` of one stream.
[[gnu::target_clones("avx2", "default")]] void uniform_chunk_portable(RandomKey key, int64_t chunk, float* out) {
  uint32_t words[4][kLanes];
  philox_lanes(static_cast<uint64_t>(chunk * kLanes), key, words);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int64_t word = 0; word < 4; ++word) out[4 * lane + word] = to_unit(words[word][lane]);
  }
}

void uniform_chunk(RandomKey key, int64_t chunk, float* out) {
  if (detail::has_random_avx512()) return detail::uniform_chunk_avx512(key, chunk, out);
  uniform_chunk_portable(key, chunk, out);
}

[[gnu::target_clones("avx512f", "avx2", "default")]] void to_gumbel(float* chunk) {
  for (int64_t i = 0; i < kChunk; ++i) chunk[i] = -vector_log(-vector_log(chunk[i]));
}

// Its Gumbel transform.
void gumbel_chunk(RandomKey key, int64_t chunk, float* out) {
  uniform_chunk(key, chunk, out);
  to_gumbel(out);
}

using ChunkFunction = void (*)(RandomKey key, int64_t chunk, float* out);

// out[0 .. size) = elements offset .. offset + size of one stream.
void fill_row(ChunkFunction function, RandomKey key, int64_t offset, int64_t size, float* out) {
  float buffer[kChunk];
  for (int64_t chunk = offset / kChunk; chunk * kChunk < offset + size; ++chunk) {
    const int64_t begin = std::max(offset, chunk * kChunk), end = std::min(offset + size, (chunk + 1) * kChunk);
    if (end - begin == kChunk) {
      function(key, chunk, out + begin - offset);
    } else {
      function(key, chunk, buffer);
      std::copy(buffer + begin % kChunk, buffer + begin % kChunk + (end - begin), out + begin - offset);
    }
  }
}

// Row r of `out` (f32 [keys, row size] on the CPU) from stream keys[r].
void fill_rows(ChunkFunction function, std::span<const RandomKey> keys, int64_t offset, Tensor& out) {
  float* data = out.data_ptr<float>();
  const int64_t rows = out.size(0), row_size = out.size(1);
  constexpr int64_t kPiece = 1 << 14;  // elements of one unit of parallel work; a multiple of a chunk
  const int64_t pieces = (row_size + kPiece - 1) / kPiece;
  at::parallel_for(0, rows * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / pieces, first = unit % pieces * kPiece;
      fill_row(function, keys[static_cast<size_t>(row)], offset + first, std::min(kPiece, row_size - first),
               data + row * row_size + first);
    }
  });
}

}  // namespace

Tensor random_keys_tensor(std::span<const RandomKey> keys, at::Device device) {
  Tensor host = at::empty({static_cast<int64_t>(keys.size()), 2}, at::kLong);
  int64_t* data = host.data_ptr<int64_t>();
  for (size_t row = 0; row < keys.size(); ++row) {
    data[2 * row] = static_cast<int64_t>(keys[row].seed);
    data[2 * row + 1] = static_cast<int64_t>(keys[row].stream);
  }
  return to_device(host, device);
}

RandomKey random_key(uint64_t seed, Purpose purpose, uint64_t a, uint64_t b) {
  return {seed, mix(mix(mix(static_cast<uint64_t>(purpose)) ^ a) ^ b)};
}

uint64_t stable_hash(std::string_view text) {
  uint64_t hash = mix(text.size());
  for (const char byte : text) hash = mix(hash ^ static_cast<unsigned char>(byte));
  return hash;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * c[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * c[2];
    c = {high(product1) ^ c[1] ^ key[0], low(product1), high(product0) ^ c[3] ^ key[1], low(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return c;
}

uint32_t RandomStream::next() {
  const uint64_t index = position_ / 4;
  if (position_ % 4 == 0) {
    block_ = philox({low(index), high(index), low(key_.stream), high(key_.stream)}, {low(key_.seed), high(key_.seed)});
  }
  return block_[position_++ % 4];
}

double RandomStream::uniform() { return to_unit(next()); }

int64_t RandomStream::integer(int64_t low_bound, int64_t high_bound) {
  TORCH_INTERNAL_ASSERT(low_bound <= high_bound);
  // Unsigned throughout: the distance of two int64_t may not fit one.
  const uint64_t range = static_cast<uint64_t>(high_bound) - static_cast<uint64_t>(low_bound) + 1;
  if (range == 0) return static_cast<int64_t>((uint64_t{next()} << 32) | next());
  const uint64_t limit = UINT64_MAX - UINT64_MAX % range;  // draws from here on would favour small values
  uint64_t draw = 0;
  do {
    draw = (uint64_t{next()} << 32) | next();
  } while (draw >= limit);
  return static_cast<int64_t>(static_cast<uint64_t>(low_bound) + draw % range);
}

std::vector<int64_t> permutation(RandomKey key, int64_t size) {
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream stream(key);
  for (int64_t i = size - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(stream.integer(0, i))]);
  }
  return order;
}

Tensor uniform_rows(std::span<const RandomKey> keys, int64_t row_size, at::Device device, int64_t offset) {
  const int64_t rows = static_cast<int64_t>(keys.size());
  Tensor out = at::empty({rows, row_size}, at::TensorOptions().dtype(at::kFloat).device(device));
  if (device.is_cuda()) {
    detail::uniform_rows_cuda(random_keys_tensor(keys, device), out, offset);
    return out;
  }
  fill_rows(uniform_chunk, keys, offset, out);
  return out;
}

Tensor gumbel_rows(std::span<const RandomKey> keys, int64_t row_size, at::Device device, int64_t offset) {
  const c10::NoGradGuard no_grad;
  if (!device.is_cpu()) return uniform_rows(keys, row_size, device, offset).log_().neg_().log_().neg_();
  Tensor out = at::empty({static_cast<int64_t>(keys.size()), row_size}, at::kFloat);
  fill_rows(gumbel_chunk, keys, offset, out);
  return out;
}

void fill_gumbel(RandomKey key, int64_t offset, int64_t size, float* out) {
  fill_row(gumbel_chunk, key, offset, size, out);
}

void fill_uniform(RandomKey key, int64_t offset, int64_t size, float* out) {
  fill_row(uniform_chunk, key, offset, size, out);
}

void largest_uniforms(RandomKey key, int64_t offset, int64_t size, float* largest) {
  int64_t done = 0;  // stretches
  if (offset % kChunk == 0 && detail::has_random_avx512()) {
    done = size / kChunk;
    detail::largest_uniforms_avx512(key, offset / kChunk, done, largest);
  }
  float stretch[kChunk];
  for (; done * kChunk < size; ++done) {
    const int64_t count = std::min(kChunk, size - done * kChunk);
    fill_uniform(key, offset + done * kChunk, count, stretch);
    largest[done] = *std::max_element(stretch, stretch + count);
  }
}

Tensor normal(RandomKey key, int64_t size) {
  Tensor out = at::empty({size}, at::kFloat);
  float* data = out.data_ptr<float>();
  RandomStream stream(key);
  for (int64_t i = 0; i < size; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log(stream.uniform()));
    const double angle = 2.0 * std::numbers::pi * stream.uniform();
    data[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < size) data[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return out;
}

}  // namespace dalle

// Counter-based randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
// Every number is a pure function of (seed, purpose, a, b, position): never of rank, batch split, thread or a library
// generator. Element i of a stream is word i % 4 of philox(counter = {i / 4, stream}, key = seed).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle {

/// What a number is for. Values are part of the reproducibility contract: append only.
enum class Purpose : uint32_t {
  kInit = 1,           // parameter initialisation: a = hash of the parameter's name
  kDataOrder = 2,      // permutation of an epoch: a = epoch, b = virtual stream
  kAugment = 3,        // crops, flips: a = global sample position
  kCaptionChoice = 4,  // a = global sample position
  kBpeDropout = 5,     // a = sample of the data set, b = epoch
  kGumbel = 6,         // relaxation noise: a = global sample position
  kDropout = 7,        // a = global sample position, b = layer
  kSampling = 8,       // a = hash of the caption, b = candidate number
  kEvaluation = 9,     // a = sample, b = draw
  kShuffle = 10,       // anything else that is shuffled, a and b as the caller says
};

/// Names one stream of numbers.
struct RandomKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
};

RandomKey random_key(uint64_t seed, Purpose purpose, uint64_t a = 0, uint64_t b = 0);

/// 64-bit hash of a text (stable over machines and versions), for use as `a` or `b`.
uint64_t stable_hash(std::string_view text);

/// The ten-round Philox4x32 block function.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Sequential draws from one stream, for scalar decisions (crop offsets, caption choice, shuffles).
class RandomStream {
 public:
  explicit RandomStream(RandomKey key) : key_(key) {}
  uint32_t next();
  /// Uniform in the open interval (0, 1), 23 bits.
  double uniform();
  /// Uniform integer in [low, high], both inclusive, without modulo bias. Requires low <= high.
  int64_t integer(int64_t low, int64_t high);

 private:
  RandomKey key_;
  uint64_t position_ = 0;
  std::array<uint32_t, 4> block_{};
};

/// A permutation of 0..size-1 (Fisher-Yates over the stream).
std::vector<int64_t> permutation(RandomKey key, int64_t size);

/// f32 [rows, row_size] on `device`: row r holds elements offset .. offset+row_size-1 of stream keys[r], uniform in the
/// open interval (0, 1) with 23 bits. The same bits on CPU and CUDA, for any thread count.
Tensor uniform_rows(std::span<const RandomKey> keys, int64_t row_size, at::Device device, int64_t offset = 0);

/// As uniform_rows, standard Gumbel: -log(-log(u)), rounded differently on CPU and CUDA.
Tensor gumbel_rows(std::span<const RandomKey> keys, int64_t row_size, at::Device device, int64_t offset = 0);

/// Elements offset .. offset + size - 1 of gumbel_rows' row of `key`, bit for bit, on the CPU: for kernels that use noise
/// without storing it.
void fill_gumbel(RandomKey key, int64_t offset, int64_t size, float* out);

/// int64 [keys, 2] on `device`: the bit patterns of seed and stream, as CUDA kernels read them.
Tensor random_keys_tensor(std::span<const RandomKey> keys, at::Device device);

/// Standard normal f32 [size] by Box-Muller, computed in f64 on the CPU (initialisation).
Tensor normal(RandomKey key, int64_t size);

}  // namespace dalle

// How often each base-2 exponent occurs among the gradients of each resblock, as 16 bits hold them: multiplied by the
// block's scale. By these the paper chose its formats and constants (2.4, app. D). fp16 holds 2^-24 (below 2^-14 with fewer
// digits) to 2^15.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dalle/distributed/communicator.h"

namespace dalle::training {

class ExponentHistogram {
 public:
  enum Kind { kActivations, kParameters };
  /// For blocks of these names, on `device`.
  ExponentHistogram(std::vector<std::string> names, at::Device device);

  /// Counts all numbers of an f32 tensor on the device.
  void add(Kind kind, int64_t block, const Tensor& gradient);
  /// Adds the counts of other ranks.
  void add_ranks(distributed::Communicator& ranks);
  /// Appends a line of JSON for each block and kind (docs/run_directory.md): exponents from the first to the last that
  /// occur. log2_scales: f64 [blocks]. Waits for the device. Throws FileError.
  void write(const std::filesystem::path& jsonl, int64_t step, const Tensor& log2_scales) const;

 private:
  std::vector<std::string> names_;
  Tensor counts_;  // i64 [kinds, blocks, exponents; zeros; not finite]
};

}  // namespace dalle::training

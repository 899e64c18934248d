// Moves the codebook of a vector-quantised model: gathers what the micro-batches of an update say about it and takes one
// step of its averages after the update was done. All its state lives in the model's parameters, and the vectors that dead
// codes restart from are functions of (seed, step, code) and the global batch: never of micro-batches, ranks or a resume.
#pragma once

#include <vector>

#include "dalle/distributed/communicator.h"
#include "dalle/layers/vector_quantizer.h"
#include "dalle/training/config.h"

namespace dalle::training {

class CodebookTrainer {
 public:
  /// `batch_size`: pictures of an update; `cells`: positions of a picture.
  CodebookTrainer(const VectorQuantizerConfig& config, uint64_t seed, int64_t batch_size, int64_t cells);

  /// A micro-batch of update `step`; the first of a step drops what a step without an update has left behind.
  void add(const layers::VectorQuantizer& quantizer, const Tensor& vectors_BDHW, const Tensor& codes_BHW,
           const std::vector<int64_t>& positions, int64_t step);
  /// Sums over ranks and moves the codebook, unless `skip` (f32 scalar on its device) is 1.
  void update(layers::VectorQuantizer& quantizer, distributed::Communicator& communicator, const Tensor& skip = {});

 private:
  void begin(const layers::VectorQuantizer& quantizer, int64_t step);
  void choose_replacements(const Tensor& vectors_BDHW, const std::vector<int64_t>& positions);

  VectorQuantizerConfig config_;
  uint64_t seed_;
  int64_t batch_size_;
  int64_t cells_;
  int64_t step_ = -1;
  Tensor picks_;  // i64 [V]: for each code the row of the global batch, picture * cells + cell, it would restart from
  layers::CodebookEvidence evidence_;
};

}  // namespace dalle::training

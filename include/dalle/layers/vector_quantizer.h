// The deterministic codebook of VQ-VAE (van den Oord et al. 2017, appendix A.1: codebook by moving averages), to compare the
// Gumbel relaxation with. The code of a vector is its nearest codebook vector; the gradient passes straight through.
//
// The codebook is state, not something that is trained: no gradient reaches it, so neither AdamW nor weight decay touch it.
// It moves after each update of the weights. Let code v be given n of an update's vectors, with sum s:
//   count_v <- decay count_v + (1 - decay) n
//   e_v     <- e_v + (1 - decay) (s - n e_v) / count_v
// which is the usual pair of averages (sum / count), kept as their quotient, so that an unused code stays where it is.
// Suffixes: B batch, D width of a codebook vector, V vocabulary, H and W grid, N vectors.
#pragma once

#include <string>

#include "dalle/layers/module.h"

namespace dalle::layers {

/// Codes and what a decoder is given for them.
struct Quantized {
  Tensor codes_BHW;     // i64
  Tensor vectors_BDHW;  // codebook vectors in value; their gradient is that of the encoder's output
  Tensor commitment;    // scalar: squared distances summed over everything, gradient to the encoder only
};

/// What one update's vectors say about the codebook; adds up over micro-batches and ranks.
struct CodebookEvidence {
  Tensor counts_V;         // vectors given to each code
  Tensor sums_VD;          // their sums
  Tensor replacements_VD;  // the vector that a dead code would be moved onto
};

struct CodebookUpdate {
  double decay = 0.99;
  double restart_share = 0;  // codes whose running count is below this share of fair_count are restarted; 0: never
  double fair_count = 0;     // vectors of an update per code, were all used alike
  Tensor skip;               // f32 scalar on the codebook's device: 1 leaves everything as it is; undefined: 0
};

struct VectorQuantizer : Module {
  VectorQuantizer(Module& parent, std::string name, int64_t vocab_size, int64_t dim);

  /// i64 [B, H, W]: argmin over v of |x - e_v|^2, the lowest v where two are alike.
  Tensor nearest(const Tensor& x_BDHW) const;
  /// f32 [B, D, H, W].
  Tensor lookup(const Tensor& codes_BHW) const;
  Quantized forward(const Tensor& x_BDHW) const;

  CodebookEvidence no_evidence() const;
  /// Adds the counts and sums of encoder outputs; replacements are the caller's to choose.
  void gather(const Tensor& x_BDHW, const Tensor& codes_BHW, CodebookEvidence& evidence) const;
  /// One step of the averages. Restarted codes take their replacement and the count of a code in fair use.
  void update(const CodebookEvidence& evidence, const CodebookUpdate& options);

  Parameter& codebook;  // [V, D]
  Parameter& count;     // [V]: running count of vectors per update
};

}  // namespace dalle::layers

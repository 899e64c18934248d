// Decoding the prior token by token: the seam between sampling and how a step is computed. Three ways stand behind it: one C++
// path for CPUs that reads packed weights (fused_model.h), a step of fixed shapes that GPUs record as a graph
// (static_decoder.h), and LibTorch's operators for any device and type (prior_decoder.h), which the others are compared with.
//
// Suffixes: C captions, B candidates, T text slots, V codes.
#pragma once

#include <memory>

#include "dalle/models/prior.h"

namespace dalle::generation {

/// A batch of candidates on their way through the image slots, under one or more captions each (several: for guidance).
class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Runs image slot `slot` = 0, 1, ... in order; 0 starts again. tokens_B (int64, on the model's device): image token
  /// slot - 1 of each candidate, ignored at slot 0. Returns the logits of image token `slot`, [C, B, V], f32 (f64 for a
  /// prior in f64), which are valid until the next step.
  virtual Tensor step(int64_t slot, const Tensor& tokens_B) = 0;
  /// Makes `batch` candidates with the same past out of one.
  virtual void expand(int64_t batch) = 0;
};

/// A prior made ready for decoding. The fast ways keep what captions that were used lately need, so that batches of one
/// caption's candidates compute its text once. One thread at a time may call it.
class DecodingModel {
 public:
  virtual ~DecodingModel() = default;
  /// Runs the text of captions_CT (int64 [C, T - 1], models::kPadToken past their ends). The model must outlive the decoder.
  virtual std::unique_ptr<Decoder> start(const Tensor& captions_CT, int64_t batch) = 0;
  /// Bytes of caches that each candidate adds under each of its captions.
  virtual int64_t candidate_bytes() const = 0;
};

struct DecodeOptions {
  bool int8_weights = false;  // all matrices as int8 with a scale for each output
  bool by_operators = false;  // LibTorch's operators, also where there is a faster way
};

/// The fastest way for the prior's device and types (models::PriorCompute), with its weights as they are now. The prior must
/// outlive the model. Throws ConfigError where int8_weights are asked for and not to be had.
std::unique_ptr<DecodingModel> make_decoding_model(const models::Prior& prior, const DecodeOptions& options = {});

}  // namespace dalle::generation

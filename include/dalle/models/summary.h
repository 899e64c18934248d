// What a model costs: parameters, FLOPs of a training step, memory of activations. For --check and the start of a run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "dalle/models/clip.h"
#include "dalle/models/dvae.h"
#include "dalle/models/prior.h"

namespace dalle::models {

struct Summary {
  int64_t num_parameters = 0;
  int64_t num_tensors = 0;
  /// Multiply-adds of one sample's forward pass in the matrix work that masks allow, times 2; a training step is 3 times.
  double forward_flops_per_sample = 0;
};

Summary summarize(const Dvae& model);
Summary summarize(const Prior& model);
Summary summarize(const Clip& model);

/// Parts of activation_bytes(): what a forward and backward pass holds at once. Its peak is either in a head, whose gradients
/// are made in the forward pass, or in the backward pass of the last MLP.
struct ActivationBytes {
  double blocks = 0;  // what residual blocks keep for the backward pass
  double weight_casts =
      0;                  // weights of residual blocks in the compute type, which a CPU with bf16 products does without
  double block_work = 0;  // of an MLP's backward pass: computed again, gradients of what it kept, of its weights
  double heads = 0;       // logits, and hidden states and weights of the heads with their gradients
  double head_gradients = 0;  // of heads' weights, which stay; counted in heads too

  double peak() const { return blocks + weight_casts + std::max(heads, block_work + head_gradients); }
};
/// Where gradients are added to those of an earlier micro-batch, head_gradients are there twice for a while.
ActivationBytes activation_parts(const PriorConfig& config, const PriorCompute& compute, int64_t micro_batch,
                                 bool activation_checkpointing);

/// Estimated peak of tensor bytes that a forward and backward pass over `micro_batch` samples takes on top of the training
/// state: what is kept for the backward pass, weights in the compute type, logits. Holds to about a quarter
/// (SummaryMemory.*); activations outweigh the rest in all but tiny models.
double activation_bytes(const PriorConfig& config, const PriorCompute& compute, int64_t micro_batch,
                        bool activation_checkpointing);

/// Two lines for people: parameters, FLOPs per step at `batch_size`.
std::string describe(const Summary& summary, int64_t batch_size);

}  // namespace dalle::models

// CLIP's loss over the global batch where no pass holds all of it: features of other ranks are gathered, and those of the
// rank's own micro-batches are made twice, first without gradients (gradient caching, Gao et al. 2021, "Scaling Deep
// Contrastive Learning Batch Size under Memory Limited Setup"). Gradients are those of one pass over everything.
#pragma once

#include <vector>

#include "dalle/core/tensor.h"
#include "dalle/distributed/communicator.h"

namespace dalle::training {

/// This rank's share of models::contrastive_loss over all ranks' unit features [B, E]: shares and gradients (once summed over
/// ranks, as the loop sums them) add up to those of the whole. Every rank must call it with as many rows.
Tensor contrastive_share(const Tensor& image_features, const Tensor& text_features, const Tensor& scale,
                         distributed::Communicator& communicator);

/// One update's micro-batches.
class ContrastiveStep {
 public:
  /// Unit features of this rank's micro-batches, made without gradients: one [B, E] of each kind for each.
  ContrastiveStep(const std::vector<Tensor>& image_features, const std::vector<Tensor>& text_features,
                  const Tensor& scale, distributed::Communicator& communicator);

  /// For the same features made again with gradients: the micro-batch's share of the loss, with the whole loss's gradient.
  Tensor share(size_t micro_batch, const Tensor& image_features, const Tensor& text_features,
               const Tensor& scale) const;

 private:
  std::vector<Tensor> image_gradients_, text_gradients_;
  Tensor scale_gradient_;
  Tensor loss_share_;
};

}  // namespace dalle::training

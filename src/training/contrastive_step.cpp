#include "dalle/training/contrastive_step.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "dalle/models/clip.h"

namespace dalle::training {
namespace {

/// All ranks' rows in rank order; gradients reach this rank's own.
Tensor gathered(const Tensor& own, distributed::Communicator& communicator) {
  if (communicator.world_size() == 1) return own;
  auto parts = communicator.all_gather(own.detach().contiguous()).chunk(communicator.world_size());
  parts[static_cast<size_t>(communicator.rank())] = own;
  return at::cat(parts);
}

/// `value`, with the gradient of `with_gradient`.
Tensor valued(const Tensor& with_gradient, const Tensor& value) {
  return with_gradient - with_gradient.detach() + value.detach();
}

}  // namespace

Tensor contrastive_share(const Tensor& image_features, const Tensor& text_features, const Tensor& scale,
                         distributed::Communicator& communicator) {
  const Tensor images = gathered(image_features, communicator), texts = gathered(text_features, communicator);
  const double ranks = communicator.world_size();
  if (ranks == 1) return models::contrastive_loss(images, texts, scale);
  // Each rank computes the whole loss. A feature has its gradient on one rank, the scale on all of them.
  const Tensor loss = models::contrastive_loss(images, texts, valued(scale / ranks, scale));
  return valued(loss, loss / ranks);
}

ContrastiveStep::ContrastiveStep(const std::vector<Tensor>& image_features, const std::vector<Tensor>& text_features,
                                 const Tensor& scale, distributed::Communicator& communicator) {
  const c10::AutoGradMode with_gradients(true);
  const Tensor images = at::cat(image_features).detach().requires_grad_();
  const Tensor texts = at::cat(text_features).detach().requires_grad_();
  const Tensor own_scale = scale.detach().requires_grad_();
  const Tensor loss = contrastive_share(images, texts, own_scale, communicator);
  loss.backward();
  std::vector<int64_t> sizes;
  for (const Tensor& features : image_features) sizes.push_back(features.size(0));
  image_gradients_ = images.grad().split_with_sizes(sizes);
  text_gradients_ = texts.grad().split_with_sizes(sizes);
  scale_gradient_ = own_scale.grad();
  loss_share_ = loss.detach() / static_cast<double>(sizes.size());
}

Tensor ContrastiveStep::share(size_t micro_batch, const Tensor& image_features, const Tensor& text_features,
                              const Tensor& scale) const {
  Tensor chained = (image_features * image_gradients_.at(micro_batch)).sum() +
                   (text_features * text_gradients_.at(micro_batch)).sum();
  if (micro_batch == 0) chained = chained + scale * scale_gradient_;
  return valued(chained, loss_share_);
}

}  // namespace dalle::training

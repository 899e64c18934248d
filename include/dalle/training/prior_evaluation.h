// Validation of the prior: text and image loss apart, with and without pads, and the image loss position by position.
#pragma once

#include <string>
#include <vector>

#include "dalle/models/prior.h"
#include "dalle/training/task.h"

namespace dalle::training {

/// Teacher-forced losses summed over samples. A loss per token is a sum over its count, whatever the batches were.
class PriorLosses {
 public:
  /// captions int64 [B, T - 1] with kPadToken past the end, codes int64 [B, I]; both on the model's device. Logits are
  /// made for a few samples at a time, so memory does not grow with the vocabulary times the batch.
  void add(const models::Prior& model, const Tensor& caption_BT, const Tensor& codes_BI,
           layers::BlockRunner& runner = layers::plain_runner());

  /// Takes in what the other ranks added; image_context positions, in case this one added nothing.
  void add_ranks(distributed::Communicator& ranks, int64_t image_context);

  /// Nats per token, names after `prefix`: "image_loss"; "text_loss" over pieces alone; where the model has targets for
  /// pads also "text_loss_with_pads" over all text slots and "pad_loss" over pads alone; and "loss", weighted as in
  /// training.
  Metrics metrics(const std::string& prefix, double text_weight, double image_weight) const;

  /// Names of metrics() of a model with these targets.
  static std::vector<std::string> names(const std::string& prefix, bool has_pad_targets);

  /// Mean nats at each position of the grid, f64 [grid_size, grid_size].
  Tensor position_loss() const;
  int64_t num_samples() const { return num_samples_; }

 private:
  double text_ = 0, num_text_ = 0;  // pieces
  double pads_ = 0, num_pads_ = 0;  // pad targets, where the model has any
  bool counts_pads_ = false;
  Tensor image_I_;  // f64 [I] on the CPU
  int64_t num_samples_ = 0;
};

/// "position-loss": the image loss of each position as a heat map, with the mean of the first row and of the rest.
Sheet position_loss_sheet(const PriorLosses& losses, const std::string& data_name, int64_t step);

}  // namespace dalle::training

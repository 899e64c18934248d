// Keeps numbers that are not finite out of a run, without a step that waits for the device. Whether an update is skipped is
// decided where its numbers are: a flag that the optimizer, the averages and the codebook are given. The host reads the
// flag to count and report, on an accelerator one step later, when a copy of it has long arrived in the host's memory; what
// a report needs is kept until then as small tensors.
#pragma once

#include <c10/core/Event.h>

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dalle/optim/gradients.h"

namespace dalle::training {

/// What is kept of an update until the host has seen its flag.
struct UpdateNumbers {
  int64_t step = 0;                                    // updates before it
  std::vector<std::pair<std::string, Tensor>> losses;  // scalars: "loss", then its parts
  std::vector<Tensor> micro_losses;                    // scalars: the loss of each micro-batch
  std::vector<std::vector<std::string>> keys;          // of the samples of each micro-batch
  optim::GradientNorms gradients;                      // before clipping
};

struct SkippedUpdate {
  int64_t step = 0;
  int64_t in_row = 0;  // skipped updates without a good one between, this one included
  int64_t total = 0;   // since the start of the run, this one included
  UpdateNumbers numbers;

  /// Loss parts and parameters that are not finite, and the batch's keys: of the micro-batches with a bad loss, or of all
  /// where each loss is finite. Waits for the device.
  std::string report() const;
  /// Whether the loss of a micro-batch of this rank is one of those that are not finite. Waits for the device.
  bool has_bad_micro_batch() const;
};

class FiniteCheck {
 public:
  /// `delay`: how many steps the host lags behind in reading flags, 0 or more.
  explicit FiniteCheck(int64_t delay);
  /// 0 on the CPU, where reading costs nothing, 1 elsewhere.
  static int64_t default_delay(at::Device device);

  /// 1 where the loss or `norm`, that of all gradients, is not finite, else 0: an f32 scalar on their device. Nothing waits.
  Tensor judge(UpdateNumbers numbers, const Tensor& norm);

  /// The next skipped update that the host should know of while update `step` is under way; none where there is no more.
  std::optional<SkippedUpdate> next_due(int64_t step) { return next_before(step + 1 - delay_); }
  /// The same for all updates before `step`, however new: for what must be exact, such as a checkpoint's count.
  std::optional<SkippedUpdate> next_before(int64_t step);

  /// Skipped updates since the start of the run that the host knows of.
  int64_t total() const { return total_; }
  /// Goes on counting from a checkpoint.
  void set_total(int64_t total) { total_ = total; }

 private:
  struct Pending {
    UpdateNumbers numbers;
    Tensor flag;                        // on the host
    std::optional<c10::Event> arrived;  // of the flag, where it comes from another device
  };

  int64_t delay_;
  std::deque<Pending> pending_;  // oldest first
  int64_t in_row_ = 0;
  int64_t total_ = 0;
};

}  // namespace dalle::training

#include "dalle/training/codebook_trainer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "dalle/core/device.h"
#include "dalle/core/random.h"
#include "dalle/layers/channels_last.h"

namespace dalle::training {

CodebookTrainer::CodebookTrainer(const VectorQuantizerConfig& config, uint64_t seed, int64_t batch_size, int64_t cells)
    : config_(config), seed_(seed), batch_size_(batch_size), cells_(cells) {}

void CodebookTrainer::begin(const layers::VectorQuantizer& quantizer, int64_t step) {
  step_ = step;
  evidence_ = quantizer.no_evidence();
  if (config_.restart_share <= 0) return;
  const RandomKey key =
      random_key(seed_, Purpose::kShuffle, static_cast<uint64_t>(step), stable_hash("codebook restart"));
  const Tensor& count = quantizer.count.tensor;
  const Tensor uniform_V = uniform_rows({&key, 1}, count.size(0), count.device()).view({-1}).to(at::kDouble);
  picks_ = (uniform_V * static_cast<double>(batch_size_ * cells_)).floor().to(at::kLong);
}

void CodebookTrainer::choose_replacements(const Tensor& vectors_BDHW, const std::vector<int64_t>& positions) {
  // Row of this micro-batch that holds a picture of the global batch; -1: another micro-batch or rank has it.
  std::vector<int64_t> row_of(static_cast<size_t>(batch_size_), -1);
  for (size_t i = 0; i < positions.size(); ++i) {
    row_of[static_cast<size_t>(positions[i] % batch_size_)] = static_cast<int64_t>(i);
  }
  const Tensor rows = to_device(at::tensor(row_of, at::kLong), picks_.device());
  const Tensor picture_V = rows.index_select(0, picks_.div(cells_, "floor"));
  const Tensor vectors_ND = layers::channel_rows(vectors_BDHW);
  const Tensor picked_VD = vectors_ND.index_select(0, picture_V.clamp_min(0) * cells_ + picks_.remainder(cells_));
  evidence_.replacements_VD = at::where((picture_V >= 0).unsqueeze(1), picked_VD, evidence_.replacements_VD);
}

void CodebookTrainer::add(const layers::VectorQuantizer& quantizer, const Tensor& vectors_BDHW, const Tensor& codes_BHW,
                          const std::vector<int64_t>& positions, int64_t step) {
  const c10::NoGradGuard no_grad;
  if (step != step_) begin(quantizer, step);
  quantizer.gather(vectors_BDHW, codes_BHW, evidence_);
  if (config_.restart_share > 0) choose_replacements(vectors_BDHW, positions);
}

void CodebookTrainer::update(layers::VectorQuantizer& quantizer, distributed::Communicator& communicator,
                             const Tensor& skip) {
  for (Tensor* share : {&evidence_.counts_V, &evidence_.sums_VD, &evidence_.replacements_VD}) {
    if (communicator.world_size() > 1) communicator.all_reduce_sum(*share);
  }
  const double vocab = static_cast<double>(quantizer.count.tensor.size(0));
  quantizer.update(evidence_, {.decay = config_.codebook_decay,
                               .restart_share = config_.restart_share,
                               .fair_count = static_cast<double>(batch_size_ * cells_) / vocab,
                               .skip = skip});
  step_ = -1;
}

}  // namespace dalle::training

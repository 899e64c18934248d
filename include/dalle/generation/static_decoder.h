// Incremental decoding by LibTorch's operators on tensors of fixed shapes and places: what changes from step to step, the slot
// and its tokens, lies on the device. So a GPU records a step once as a CUDA graph and replays it for every token, without
// waiting for the host. Caches hold only what a later slot may see (cache_layout.h); which of their positions a slot reads is
// looked up in tables, and positions that the first slots lack are masked.
//
// Suffixes: C captions, B candidates, R = C B rows, H heads, K head_dim, T text slots, I image slots, P positions of a
// cache, n slots visible at most, V codes.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "dalle/core/cuda_graph.h"
#include "dalle/generation/cache_layout.h"
#include "dalle/generation/decoder.h"
#include "dalle/layers/int8_product.h"

namespace dalle::generation {

/// A linear layer with its matrix made ready: in the compute type, or in int8.
struct StaticLinear {
  StaticLinear(const Tensor& weight_ON, const Tensor& bias_O, at::ScalarType type, bool is_int8);
  Tensor forward(const Tensor& x) const;  // [..., K] in the compute type, so the result
  Tensor weight_ON, bias_O;               // weight_ON is not defined with int8
  layers::Int8Matrix int8;
};

struct StaticLayer {
  StaticLayer(const layers::TransformerBlock& block, bool is_int8);
  /// layers::TransformerBlock's forward(). x_RLD: the residual stream.
  Tensor forward(const Tensor& x_RLD, const layers::AttendFunction& attend) const;
  const layers::TransformerBlock& block;
  StaticLinear qkv, out, fc, proj;
};

/// Keys and values of captions' text in each layer, [C, H, T, K]: shared by all candidates.
struct StaticText {
  Tensor captions_CT;
  std::vector<std::pair<Tensor, Tensor>> layers;
};

class StaticModel : public DecodingModel {
 public:
  /// `prior` must outlive the model. int8_weights: all matrices, for a prior in f32 or bf16.
  explicit StaticModel(const models::Prior& prior, bool int8_weights = false);
  std::unique_ptr<Decoder> start(const Tensor& captions_CT, int64_t batch) override;
  int64_t candidate_bytes() const override;

 private:
  friend class StaticDecoder;
  /// Of the captions that were asked for last, or run now.
  std::shared_ptr<const StaticText> text_of(const Tensor& captions_CT);

  const models::Prior& prior_;
  std::vector<StaticLayer> layers_;
  StaticLinear head_;
  std::shared_ptr<const StaticText> recent_;
};

class StaticDecoder : public Decoder {
 public:
  /// `model`, which ran the text, must outlive the decoder.
  StaticDecoder(const StaticModel& model, std::shared_ptr<const StaticText> text, int64_t batch);
  Tensor step(int64_t slot, const Tensor& tokens_B) override;
  void expand(int64_t batch) override;

 private:
  struct LayerCache {
    Tensor text_k_CHTK, text_v_CHTK;    // of text_
    Tensor image_k_RHPK, image_v_RHPK;  // row = caption * B + candidate
  };
  // For each slot of one attention kind: where it is written, what it reads, and 0 or -inf to add to the scores of that.
  struct Tables {
    Tensor position_I, visible_In, bias_In;
  };
  // Their rows for the slot of this step.
  struct Slot {
    Tensor position_1, visible_n, bias_n;
  };

  static Tables tables_of(const CacheLayout& layout, const models::PriorConfig& config,
                          const at::TensorOptions& scores);
  void make_caches();
  void run();
  Tensor attend(LayerCache& cache, const Slot& slot, const Tensor& q_RH1K, const Tensor& k_RH1K,
                const Tensor& v_RH1K) const;

  const StaticModel& model_;
  const models::Prior& prior_;
  std::shared_ptr<const StaticText> text_;
  int64_t num_texts_, batch_;
  std::vector<LayerCache> caches_;
  std::array<Tables, 4> tables_;  // of each attention kind that the prior has
  Tensor grid_embedding_ID_;      // of each slot: its row's and its column's
  Tensor slot_1_, tokens_B_;      // int64, what the step reads
  Tensor logits_CBV_;             // what it writes
  std::unique_ptr<CudaGraph> graph_;
};

}  // namespace dalle::generation

// A step of all candidates: rows of the residual stream go through the layers, all of them together, or a group of rows for
// each thread where there are enough. Which of the two, and which rows share a group, changes no result.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "decode_kernels.h"
#include "fused_parts.h"

namespace dalle::generation {
namespace {

constexpr int64_t kGroupRows = 4;  // for a thread: then one meeting of the threads a step, rather than one a product
constexpr int64_t kThreadWork = 1 << 16;  // multiply-adds that are worth waking a thread for
constexpr int64_t kChunkRows = 32;        // whose scores of one head stay in the cache
constexpr int64_t kRowsAhead = 3;         // whose short stretches of cache no processor foresees

// x in the form of the cache.
const float* in_form_of(const float*, const float* x, int64_t, std::vector<uint16_t>&) { return x; }
const uint16_t* in_form_of(const uint16_t*, const float* x, int64_t size, std::vector<uint16_t>& rounded) {
  if (static_cast<int64_t>(rounded.size()) < size) rounded.resize(static_cast<size_t>(size));
  detail::store(x, size, rounded.data());
  return rounded.data();
}

class FusedDecoder : public Decoder {
 public:
  FusedDecoder(const FusedModel::Parts& parts, std::vector<std::shared_ptr<const TextCache>> texts, int64_t batch)
      : parts_(parts), config_(parts.config), texts_(std::move(texts)), batch_(batch), rows_(num_rows(), config_) {
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const std::vector<int64_t> sizes{2, config_.num_heads, num_rows(), parts.layout_of(layer).capacity(),
                                       parts.head_dim};
      const bool is_f32 = parts.cache_format == layers::WeightFormat::kF32;
      caches_.push_back(at::empty(sizes, is_f32 ? at::kFloat : at::kShort));
    }
    logits_CBV_ = at::empty({num_texts(), batch, config_.image_vocab_size}, at::kFloat);
  }

  Tensor step(int64_t slot, const Tensor& tokens_B) override {
    TORCH_CHECK_VALUE(slot == 0 || slot == next_slot_, "[fused decoder] expected image slot ", next_slot_,
                      " or 0, got ", slot);
    TORCH_CHECK_VALUE(slot < config_.image_context(), "[fused decoder] image slot ", slot, " does not fit a ",
                      config_.grid_size, " x ", config_.grid_size, " grid");
    TORCH_CHECK_VALUE(tokens_B.dim() == 1 && tokens_B.size(0) == batch_ && tokens_B.scalar_type() == at::kLong,
                      "[fused decoder] expected ", batch_, " int64 tokens, got ", tokens_B.toString(), " ",
                      tokens_B.sizes());
    embed(slot, tokens_B.contiguous());
    const int64_t rows = num_rows(), threads = at::get_num_threads();
    const int64_t groups = rows >= kGroupRows * threads ? threads : 1;
    scratch_.resize(static_cast<size_t>(groups));
    const auto run_group = [&](int64_t group) {
      run_rows(slot, rows * group / groups, rows * (group + 1) / groups, scratch_[static_cast<size_t>(group)]);
    };
    if (groups == 1) {
      run_group(0);  // its products share out their columns
    } else {
      at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) run_group(group);
      });
    }
    next_slot_ = slot + 1;
    return logits_CBV_;
  }

  void expand(int64_t batch) override {
    TORCH_CHECK_VALUE(batch_ == 1 && batch > 0, "[fused decoder] expected one candidate to make ", batch, " of, got ",
                      batch_);
    for (Tensor& cache : caches_) cache = cache.repeat_interleave(batch, 2);
    batch_ = batch;
    rows_ = RowBuffers(num_rows(), config_);
    logits_CBV_ = logits_CBV_.repeat_interleave(batch, 1);
  }

 private:
  int64_t num_texts() const { return static_cast<int64_t>(texts_.size()); }
  int64_t num_rows() const { return num_texts() * batch_; }  // row = text * batch + candidate

  void embed(int64_t slot, const Tensor& tokens_B) {
    const models::Prior& prior = parts_.prior;
    const int64_t dim = config_.dim, *tokens = tokens_B.const_data_ptr<int64_t>();
    const auto row_of = [dim](const Tensor& table, int64_t row) { return table.const_data_ptr<float>() + row * dim; };
    const float* grid_row = row_of(prior.image_row_embedding.weight.tensor, slot / config_.grid_size);
    const float* grid_column = row_of(prior.image_column_embedding.weight.tensor, slot % config_.grid_size);
    for (int64_t b = 0; b < batch_; ++b) {
      const float* token = row_of(prior.start_embedding.weight.tensor, 1);
      if (slot > 0) {
        TORCH_CHECK_VALUE(tokens[b] >= 0 && tokens[b] < config_.image_vocab_size, "[fused decoder] image token ",
                          tokens[b], " is not below ", config_.image_vocab_size);
        token = row_of(prior.image_embedding.weight.tensor, tokens[b]);
      }
      for (int64_t text = 0; text < num_texts(); ++text) {
        float* x = rows_.x + (text * batch_ + b) * dim;
        for (int64_t d = 0; d < dim; ++d) x[d] = token[d] + (grid_row[d] + grid_column[d]);
      }
    }
  }

  void run_rows(int64_t slot, int64_t begin, int64_t end, layers::ProductScratch& scratch) {
    const RowBuffers rows = rows_.from_row(begin);
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      parts_.run_layer(parts_.layers[static_cast<size_t>(layer)], rows, end - begin, scratch, [&] {
        if (parts_.cache_format == layers::WeightFormat::kF32) {
          attend<float>(layer, slot, begin, end);
        } else {
          attend<uint16_t>(layer, slot, begin, end);
        }
      });
    }
    parts_.ln_final.apply(rows.x, end - begin, rows.h);
    const int64_t vocab = config_.image_vocab_size;
    layers::multiply(rows.h, config_.dim, end - begin, parts_.head.weight, parts_.head.bias.const_data_ptr<float>(),
                     logits_CBV_.mutable_data_ptr<float>() + begin * vocab, vocab, scratch);
  }

  template <class T>
  void attend(int64_t layer, int64_t slot, int64_t begin, int64_t end) {
    const int64_t head_work = (end - begin) * 2 * parts_.head_dim * config_.text_context;
    at::parallel_for(
        0, config_.num_heads, std::max<int64_t>(1, kThreadWork / head_work), [&](int64_t first, int64_t last) {
          for (int64_t head = first; head < last; ++head) {
            for (int64_t row = begin; row < end;) {  // stretches of rows with the same text
              const int64_t text_end = (row / batch_ + 1) * batch_, stop = std::min({row + kChunkRows, end, text_end});
              attend_head<T>(layer, head, slot, row, stop);
              row = stop;
            }
          }
        });
  }

  // One softmax over the text's and the visible image slots' scores.
  template <class T>
  void attend_head(int64_t layer, int64_t head, int64_t slot, int64_t begin, int64_t end) {
    const CacheLayout& layout = parts_.layout_of(layer);
    const auto visible = layout.visible(slot);
    const int64_t size = parts_.head_dim, dim = config_.dim, text = config_.text_context;
    const int64_t stride = text + layout.max_visible(), capacity = layout.capacity();
    int64_t num_visible = 0;
    for (const CacheSpan& span : visible) num_visible += span.size;
    const auto& cached =
        texts_[static_cast<size_t>(begin / batch_)]->heads[static_cast<size_t>(layer * config_.num_heads + head)];
    AttentionScratch& scratch = attention_scratch();
    scratch.scores.resize(std::max(scratch.scores.size(), static_cast<size_t>((end - begin) * (stride + 1))));
    float *scores = scratch.scores.data(), *sums = scores + (end - begin) * stride;
    T* cache = static_cast<T*>(caches_[static_cast<size_t>(layer)].mutable_data_ptr());
    const auto keys_of = [&](int64_t row) { return cache + (head * num_rows() + row) * capacity * size; };
    const int64_t to_values = config_.num_heads * num_rows() * capacity * size;
    layers::multiply(rows_.qkv + begin * 3 * dim + head * size, 3 * dim, end - begin, cached.keys, nullptr, scores,
                     stride, scratch.product);
    const auto ask_for = [&](const T* cached_row) {
      constexpr int64_t kLine = 64 / sizeof(T);
      for (const CacheSpan& span : visible) {
        for (int64_t i = 0; i < span.size * size; i += kLine) __builtin_prefetch(cached_row + span.begin * size + i);
      }
    };
    for (int64_t row = begin; row < end; ++row) {
      if (row + kRowsAhead < end) ask_for(keys_of(row + kRowsAhead));
      const float* q = rows_.qkv + row * 3 * dim + head * size;
      T *keys = keys_of(row), *here = keys + layout.position(slot) * size;
      detail::store(q + dim, size, here);
      detail::store(q + 2 * dim, size, here + to_values);
      float *score = scores + (row - begin) * stride, *next = score + text;
      const T* query = in_form_of(keys, q, size, scratch.rounded);
      for (const CacheSpan& span : visible) {
        detail::dots(query, keys + span.begin * size, span.size, size, next);
        next += span.size;
      }
    }
    // Not above: scores that were written in pieces a moment ago are slow to read as a whole.
    for (int64_t row = 0; row < end - begin; ++row) {
      sums[row] = detail::exponentials(text + num_visible, scores + row * stride);
    }
    float* out = rows_.attended + begin * dim + head * size;
    layers::multiply(scores, stride, end - begin, cached.values, nullptr, out, dim, scratch.product);
    for (int64_t row = begin; row < end; ++row, out += dim) {
      if (row + kRowsAhead < end) ask_for(keys_of(row + kRowsAhead) + to_values);
      const T* values = keys_of(row) + to_values;
      const T* weights = in_form_of(values, scores + (row - begin) * stride + text, num_visible, scratch.rounded);
      for (const CacheSpan& span : visible) {
        detail::add_values(weights, values + span.begin * size, span.size, size, out);
        weights += span.size;
      }
      detail::multiply_by(1.0f / sums[row - begin], size, out);
    }
  }

  const FusedModel::Parts& parts_;
  const models::PriorConfig& config_;
  std::vector<std::shared_ptr<const TextCache>> texts_;
  int64_t batch_;
  int64_t next_slot_ = 0;
  RowBuffers rows_;
  std::vector<Tensor> caches_;  // [2 (keys, values), H, rows, capacity, K] of each layer; bf16 by its bits
  Tensor logits_CBV_;
  std::vector<layers::ProductScratch> scratch_;  // of each group of rows
};

}  // namespace

std::unique_ptr<Decoder> make_fused_decoder(const FusedModel::Parts& parts,
                                            std::vector<std::shared_ptr<const TextCache>> texts, int64_t batch) {
  return std::make_unique<FusedDecoder>(parts, std::move(texts), batch);
}

}  // namespace dalle::generation

// A step of all candidates: rows of the residual stream go through the layers, all of them together, or a group of rows for
// each thread where there are enough. Which of the two, and which rows share a group, changes no result.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "dalle/generation/decode_kernels.h"
#include "fused_parts.h"

namespace dalle::generation {
namespace {

constexpr int64_t kGroupRows = 4;  // for a thread: then one meeting of the threads a step, rather than one a product
constexpr int64_t kThreadWork = 1 << 16;  // multiply-adds that are worth waking a thread for
constexpr int64_t kChunkRows = 32;        // whose scores of one head stay in the cache
constexpr int64_t kTextPadding = 32;      // of a row's scores of the text: what products of bf16 take

int64_t padded(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

class FusedDecoder : public Decoder {
 public:
  FusedDecoder(const FusedModel::Parts& parts, std::vector<std::shared_ptr<const TextCache>> texts, int64_t batch)
      : parts_(parts),
        config_(parts.config),
        texts_(std::move(texts)),
        batch_(batch),
        rows_(num_rows(), config_),
        seen_(parts.layouts.size()) {
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const std::vector<int64_t> sizes{2, config_.num_heads, parts.cache_blocks(layer), num_rows(),
                                       parts.block_numbers()};
      caches_.push_back(at::empty(sizes, is_f32() ? at::kFloat : at::kShort));
    }
    make_row_memory();
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
    for (size_t kind = 0; kind < seen_.size(); ++kind) {
      seen_[kind] = detail::blocks_of(parts_.layouts[kind].visible(slot));
    }
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
    for (Tensor& cache : caches_) cache = cache.repeat_interleave(batch, 3);
    batch_ = batch;
    rows_ = RowBuffers(num_rows(), config_);
    make_row_memory();
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
    layers::multiply(rows.h, config_.dim, end - begin, parts_.head.weight, parts_.head.biases,
                     logits_CBV_.mutable_data_ptr<float>() + begin * vocab, vocab, scratch);
  }

  bool is_f32() const { return parts_.cache_format == layers::WeightFormat::kF32; }

  void make_row_memory() {
    own_scores_.resize(static_cast<size_t>(num_rows() * config_.num_heads));
    if (!is_f32()) queries_.resize(static_cast<size_t>(num_rows() * query_stride()));
  }

  // Queries in bf16: each head's padded with zeros, as products take it.
  int64_t query_size() const { return padded(parts_.head_dim, kTextPadding); }
  int64_t query_stride() const { return config_.num_heads * query_size(); }

  // What attention needs of rows beside their numbers in rows_: the scores of themselves, and queries in bf16.
  void prepare(int64_t begin, int64_t end) {
    const int64_t dim = config_.dim, heads = config_.num_heads, size = parts_.head_dim;
    for (int64_t row = begin; row < end; ++row) {
      const float* q = rows_.qkv + row * 3 * dim;
      detail::own_scores(q, q + dim, heads, size, own_scores_.data() + row * heads);
      if (is_f32()) continue;
      uint16_t* to = queries_.data() + row * query_stride();
      if (size == query_size()) {
        detail::store(q, dim, to);
        continue;
      }
      for (int64_t head = 0; head < heads; ++head) detail::store(q + head * size, size, to + head * query_size());
    }
  }

  template <class T>
  void attend(int64_t layer, int64_t slot, int64_t begin, int64_t end) {
    prepare(begin, end);
    const auto run_heads = [&](int64_t first, int64_t last) {
      for (int64_t head = first; head < last; ++head) {
        for (int64_t row = begin; row < end;) {  // stretches of rows with the same text
          const int64_t text_end = (row / batch_ + 1) * batch_, stop = std::min({row + kChunkRows, end, text_end});
          attend_head<T>(layer, head, slot, row, stop);
          row = stop;
        }
      }
    };
    const int64_t head_work = (end - begin) * 2 * parts_.head_dim * config_.text_context;
    const int64_t grain = std::max<int64_t>(1, kThreadWork / head_work);
    if (config_.num_heads <= grain) return run_heads(0, config_.num_heads);
    at::parallel_for(0, config_.num_heads, grain, run_heads);
  }

  const float* query_of(int64_t row, int64_t head, const float*) const {
    return rows_.qkv + row * 3 * config_.dim + head * parts_.head_dim;
  }
  const uint16_t* query_of(int64_t row, int64_t head, const uint16_t*) const {
    return queries_.data() + row * query_stride() + head * query_size();
  }
  int64_t query_step(const float*) const { return 3 * config_.dim; }
  int64_t query_step(const uint16_t*) const { return query_stride(); }

  // Rows by a matrix of the text, in the form of the caches.
  static void multiply_text(const float* x, int64_t x_stride, int64_t rows, const layers::PackedWeights& weight,
                            float* out, int64_t out_stride, AttentionScratch& scratch) {
    layers::multiply(x, x_stride, rows, weight, nullptr, out, out_stride, scratch.product);
  }
  static void multiply_text(const uint16_t* x, int64_t x_stride, int64_t rows, const layers::PackedWeights& weight,
                            float* out, int64_t out_stride, AttentionScratch&) {
    layers::multiply(x, x_stride, rows, weight, nullptr, out, out_stride);
  }

  static float* weights_in(AttentionScratch& scratch, const float*, int64_t) { return scratch.scores.data(); }
  static uint16_t* weights_in(AttentionScratch& scratch, const uint16_t*, int64_t numbers) {
    scratch.weights.resize(std::max(scratch.weights.size(), static_cast<size_t>(numbers)));
    return scratch.weights.data();
  }

  // A head's part of a layer's cache, and where the slot of this step is written to.
  template <class T>
  struct HeadCache {
    T *keys, *values;
    int64_t size, numbers, block_stride;  // of a key; of a row in a block; from block to block
    int64_t own_index, own_place;
    bool begins_block;  // which is cleared then: weights of what isn't seen are 0, and meet finite numbers

    detail::BlockCache<T> of(const T* cache, int64_t row) const { return {cache + row * numbers, block_stride, size}; }
    T* own_block(T* cache, int64_t row) const { return cache + own_index * block_stride + row * numbers; }
  };

  template <class T>
  HeadCache<T> head_cache(int64_t layer, int64_t head, int64_t slot) {
    const auto kind = static_cast<size_t>(config_.layer_kind(layer));
    const int64_t numbers = parts_.block_numbers(), block_stride = num_rows() * numbers;
    const int64_t head_numbers = parts_.cache_blocks(layer) * block_stride;
    const int64_t position = parts_.layouts[kind].position(slot);
    T* keys = static_cast<T*>(caches_[static_cast<size_t>(layer)].mutable_data_ptr()) + head * head_numbers;
    return {.keys = keys,
            .values = keys + config_.num_heads * head_numbers,
            .size = parts_.head_dim,
            .numbers = numbers,
            .block_stride = block_stride,
            .own_index = position / detail::kBlockPositions,
            .own_place = position % detail::kBlockPositions,
            .begins_block = parts_.begins_block[kind][static_cast<size_t>(slot)]};
  }

  // One softmax over the scores of the text, of the slot itself and of the image slots that it sees, in this order.
  template <class T>
  void attend_head(int64_t layer, int64_t head, int64_t slot, int64_t begin, int64_t end) {
    const std::vector<detail::SeenBlock>& seen = seen_[static_cast<size_t>(config_.layer_kind(layer))];
    const int64_t size = parts_.head_dim, dim = config_.dim, text = config_.text_context, rows = end - begin;
    const int64_t own_at = padded(text, kTextPadding);
    const int64_t stride = own_at + detail::kBlockPositions * (1 + static_cast<int64_t>(seen.size()));
    const auto& cached =
        texts_[static_cast<size_t>(begin / batch_)]->heads[static_cast<size_t>(layer * config_.num_heads + head)];
    AttentionScratch& scratch = attention_scratch();
    scratch.scores.resize(std::max(scratch.scores.size(), static_cast<size_t>(rows * (stride + 1))));
    float *scores = scratch.scores.data(), *sums = scores + rows * stride;
    const HeadCache<T> cache = head_cache<T>(layer, head, slot);
    const auto query = [&](int64_t row) { return query_of(row, head, cache.keys); };
    const auto numbers_of = [&](int64_t row) { return rows_.qkv + row * 3 * dim + head * size; };  // query, key, value

    multiply_text(query(begin), query_step(cache.keys), rows, cached.keys, scores, stride, scratch);
    for (int64_t row = begin; row < end; ++row) {
      float* score = scores + (row - begin) * stride;
      std::fill(score + text, score + own_at, -std::numeric_limits<float>::infinity());
      detail::block_scores(query(row), own_scores_[static_cast<size_t>(row * config_.num_heads + head)],
                           cache.of(cache.keys, row), seen, score + own_at);
      // An odd head's last numbers have no partners: what stands there is multiplied by 0 and must be a number.
      if (cache.begins_block && size % 2 != 0) std::fill_n(cache.own_block(cache.keys, row), cache.numbers, T{0});
      detail::put_key(numbers_of(row) + dim, size, cache.own_place, cache.own_block(cache.keys, row));
    }
    // Not above: scores that were written in pieces a moment ago are slow to read as a whole.
    T* weights = weights_in(scratch, cache.keys, rows * stride);
    for (int64_t row = 0; row < rows; ++row) {
      sums[row] = detail::softmax_weights(scores + row * stride, stride, weights + row * stride);
    }
    float* out = rows_.attended + begin * dim + head * size;
    multiply_text(weights, stride, rows, cached.values, out, dim, scratch);
    for (int64_t row = begin; row < end; ++row, out += dim, weights += stride) {
      const float* own = numbers_of(row) + 2 * dim;
      detail::add_block_values(weights + own_at, own, cache.of(cache.values, row), seen, 1.0f / sums[row - begin], out);
      if (cache.begins_block) std::fill_n(cache.own_block(cache.values, row), cache.numbers, T{0});
      detail::put_value(own, size, cache.own_place, cache.own_block(cache.values, row));
    }
  }

  const FusedModel::Parts& parts_;
  const models::PriorConfig& config_;
  std::vector<std::shared_ptr<const TextCache>> texts_;
  int64_t batch_;
  int64_t next_slot_ = 0;
  RowBuffers rows_;
  std::vector<Tensor> caches_;  // [2 (keys, values), H, blocks, rows, numbers] of each layer; bf16 by its bits
  std::vector<std::vector<detail::SeenBlock>> seen_;  // by the slot of this step, of each attention kind
  std::vector<float> own_scores_;                     // [rows, H]
  std::vector<uint16_t> queries_;                     // [rows, H, query_size()], where the caches are bf16
  Tensor logits_CBV_;
  std::vector<layers::ProductScratch> scratch_;  // of each group of rows
};

}  // namespace

std::unique_ptr<Decoder> make_fused_decoder(const FusedModel::Parts& parts,
                                            std::vector<std::shared_ptr<const TextCache>> texts, int64_t batch) {
  return std::make_unique<FusedDecoder>(parts, std::move(texts), batch);
}

}  // namespace dalle::generation

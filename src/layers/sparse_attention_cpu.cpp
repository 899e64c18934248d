// The loops of block_sparse_attention() over one head: scores of a block of queries against its stretches of keys, softmax,
// values; and the gradients from recomputed scores. Heads are independent, so threads share nothing.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>

#include "attention_tiles.h"
#include "dalle/core/device.h"
#include "dalle/core/scratch.h"
#include "dalle/layers/bf16_product.h"
#include "dalle/layers/sparse_attention.h"

namespace dalle::layers::detail {
namespace {

constexpr int64_t kQueries = BlockSparsePlan::kQueries;

template <class T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// Where one head's rows lie in a tensor [B, H, L, K] of any strides.
struct HeadView {
  HeadView(const Tensor& x_BHLK, int64_t batch, int64_t head)
      : tensor(x_BHLK), offset(batch * x_BHLK.stride(0) + head * x_BHLK.stride(1)), stride(x_BHLK.stride(2)) {}
  const Tensor& tensor;
  int64_t offset, stride;
};

// The dropout of one head of one sample.
struct HeadDropout {
  const AttentionDropout& dropout;
  int64_t batch, head;

  bool is_on() const { return dropout.is_on(); }
  PairRow row(int64_t query) const {
    return AttentionDropout::row(dropout.keys[static_cast<size_t>(batch)], head, query);
  }
};

// Rows in the plan's order, `stride` numbers from one to the next.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

// Everything about one head, computed by Tiles, rows in the plan's order and padded with zeros to whole blocks and `size`.
template <class Tiles>
class Head {
 public:
  using T = typename Tiles::T;

  Head(const BlockSparsePlan& plan, int64_t head_dim)
      : plan_(plan),
        head_dim_(head_dim),
        size_((head_dim + Tiles::kDepth - 1) / Tiles::kDepth * Tiles::kDepth),
        rows_(plan.padded_length()),
        scale_(1 / std::sqrt(static_cast<float>(head_dim))),
        q_(scratch<T>(rows_ * size_)),
        k_(scratch<T>(rows_ * size_)),
        v_(scratch<T>(rows_ * size_)),
        packed_k_(scratch<T>(rows_ * size_)),
        packed_v_(scratch<T>(rows_ * size_)),
        scores_(scratch<float>(kQueries * plan.max_width)),
        weights_(scratch<T>(kQueries * plan.max_width)),
        block_(scratch<float>(kQueries * size_)),
        factors_(scratch<float>(kQueries * plan.max_width)),
        lies_in_place_(rows_ == plan.length && size_ == head_dim && std::ranges::is_sorted(plan.order)),
        key_positions_(static_cast<size_t>(rows_)) {
    std::copy(plan.order.begin(), plan.order.end(), key_positions_.begin());
  }

  void load(const HeadView& q, const HeadView& k, const HeadView& v) {
    query_rows_ = rows_of(q, q_.get());
    key_rows_ = rows_of(k, k_.get());
    value_rows_ = rows_of(v, v_.get());
    Tiles::pack_columns(key_rows_.data, key_rows_.stride, rows_, size_, packed_k_.get());
  }

  template <class Out>
  void forward(const HeadDropout& dropout, Out* out, int64_t out_stride, float* log_normalizers) {
    Tiles::pack(value_rows_.data, value_rows_.stride, rows_, size_, packed_v_.get());
    for (const auto& block : plan_.blocks) {
      compute_scores(block);
      float shifts[kQueries], sums[kQueries];
      for (int64_t r = 0; r < block.num_queries; ++r) {
        const float* row = scores_.get() + r * block.width;
        const auto [shift, sum] = Tiles::exponentials(row, block.width, scale_, weights_.get() + r * block.width);
        shifts[r] = shift;
        sums[r] = sum;
      }
      log_normalizers_of(shifts, sums, block.num_queries, log_normalizers + block.query);
      if (const float* factors = dropout_factors(block, dropout)) {
        multiply_row(factors, block.num_queries * block.width, weights_.get());
      }
      std::fill_n(weights_.get() + block.num_queries * block.width, (kQueries - block.num_queries) * block.width, T{});
      for (const auto& stretch : block.stretches) {
        Tiles::product(kQueries, size_, stretch.width, weights_.get() + stretch.column, block.width,
                       packed_v_.get() + stretch.key * size_, size_, block_.get(), size_, stretch.column > 0);
      }
      for (int64_t r = 0; r < block.num_queries; ++r) {
        Tiles::store(block_.get() + r * size_, head_dim_, 1 / sums[r], out + position(block.query + r) * out_stride);
      }
    }
  }

  // What the backward pass needs besides, once for all heads.
  struct Gradients {
    Gradients(int64_t rows, int64_t size, int64_t max_width)
        : grad(scratch<T>(rows * size)),
          out(scratch<T>(rows * size)),
          packed_grad(scratch<T>(rows * size)),
          packed_q(scratch<T>(rows * size)),
          packed_key_rows(scratch<T>(rows * size)),
          dk(scratch<float>(rows * size)),
          dv(scratch<float>(rows * size)),
          grad_weights(scratch<float>(kQueries * max_width)),
          grad_scores(scratch<T>(kQueries * max_width)),
          turned_weights(scratch<T>(kQueries * max_width)),
          turned_grad_scores(scratch<T>(kQueries * max_width)) {}
    Scratch<T> grad, out, packed_grad, packed_q, packed_key_rows;
    Scratch<float> dk, dv, grad_weights;
    Scratch<T> grad_scores, turned_weights, turned_grad_scores;
  };

  template <class Out>
  void backward(const HeadDropout& dropout, const HeadView& grad, const HeadView& out, const float* log_normalizers,
                Out* dq, Out* dk, Out* dv, int64_t out_stride) {
    if (!gradients_) gradients_.emplace(rows_, size_, plan_.max_width);
    Gradients& g = *gradients_;
    const Rows<T> grad_rows = rows_of(grad, g.grad.get());
    const Rows<T> out_rows = rows_of(out, g.out.get());
    Tiles::pack(grad_rows.data, grad_rows.stride, rows_, size_, g.packed_grad.get());
    Tiles::pack(query_rows_.data, query_rows_.stride, rows_, size_, g.packed_q.get());
    Tiles::pack_columns(value_rows_.data, value_rows_.stride, rows_, size_, packed_v_.get());
    Tiles::pack(key_rows_.data, key_rows_.stride, rows_, size_, g.packed_key_rows.get());  // for the queries' gradient
    std::fill_n(g.dk.get(), rows_ * size_, 0.0f);
    std::fill_n(g.dv.get(), rows_ * size_, 0.0f);
    for (const auto& block : plan_.blocks) {
      compute_scores(block);
      for (const auto& stretch : block.stretches) {
        Tiles::product(kQueries, stretch.width, size_, grad_rows.data + block.query * grad_rows.stride,
                       grad_rows.stride, packed_v_.get() + stretch.key * Tiles::kPair, rows_,
                       g.grad_weights.get() + stretch.column, block.width, false);
      }
      float deltas[kQueries];
      for (int64_t r = 0; r < block.num_queries; ++r) {
        const int64_t i = block.query + r;
        deltas[r] = Tiles::dot(grad_rows.data + i * grad_rows.stride, out_rows.data + i * out_rows.stride, size_);
      }
      Tiles::softmax_gradients({.num_queries = block.num_queries,
                                .width = block.width,
                                .scale = scale_,
                                .scores = scores_.get(),
                                .grad_weights = g.grad_weights.get(),
                                .log_normalizers = log_normalizers + block.query,
                                .deltas = deltas,
                                .factors = dropout_factors(block, dropout),
                                .weights = weights_.get(),
                                .grad_scores = g.grad_scores.get(),
                                .turned_weights = g.turned_weights.get(),
                                .turned_grad_scores = g.turned_grad_scores.get()});
      for (const auto& stretch : block.stretches) {
        const int64_t key = stretch.key * size_, query = block.query * size_;
        Tiles::product(kQueries, size_, stretch.width, g.grad_scores.get() + stretch.column, block.width,
                       g.packed_key_rows.get() + key, size_, block_.get(), size_, stretch.column > 0);
        Tiles::turned_product(stretch.width, size_, g.turned_grad_scores.get(), stretch.column, block.width,
                              g.packed_q.get() + query, g.dk.get() + key);
        Tiles::turned_product(stretch.width, size_, g.turned_weights.get(), stretch.column, block.width,
                              g.packed_grad.get() + query, g.dv.get() + key);
      }
      for (int64_t r = 0; r < block.num_queries; ++r) {
        Tiles::store(block_.get() + r * size_, head_dim_, 1, dq + position(block.query + r) * out_stride);
      }
    }
    for (int64_t i = 0; i < plan_.length; ++i) {
      Tiles::store(g.dk.get() + i * size_, head_dim_, 1, dk + position(i) * out_stride);
      Tiles::store(g.dv.get() + i * size_, head_dim_, 1, dv + position(i) * out_stride);
    }
  }

 private:
  int64_t position(int64_t i) const { return plan_.order[static_cast<size_t>(i)]; }

  // What the weights of a block's rows are multiplied by; null without dropout.
  const float* dropout_factors(const BlockSparsePlan::Block& block, const HeadDropout& dropout) {
    if (!dropout.is_on()) return nullptr;
    std::fill_n(factors_.get(), kQueries * block.width, 0.0f);
    for (int64_t r = 0; r < block.num_queries; ++r) {
      const PairRow row = dropout.row(position(block.query + r));
      for (const auto& stretch : block.stretches) {
        dropout_row(row, key_positions_.data() + stretch.key, stretch.width, dropout.dropout.threshold(),
                    dropout.dropout.kept(), factors_.get() + r * block.width + stretch.column);
      }
    }
    return factors_.get();
  }

  // Where they lie, if that is in the plan's order and size already; else gathered to `to`.
  Rows<T> rows_of(const HeadView& view, T* to) const {
    constexpr auto kType = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;
    const bool is_row_by_row = view.stride >= size_ && view.stride % Tiles::kPair == 0;  // not expanded
    if (lies_in_place_ && is_row_by_row && view.tensor.scalar_type() == kType) {
      return {data_of<T>(view.tensor) + view.offset, view.stride};
    }
    gather(view, to);
    return {to, size_};
  }

  void gather(const HeadView& view, T* out) const {
    if (view.tensor.scalar_type() == at::kFloat) {
      gather(data_of<float>(view.tensor) + view.offset, view.stride, out);
    } else {
      gather(data_of<Bf16>(view.tensor) + view.offset, view.stride, out);
    }
  }

  template <class In>
  void gather(const In* rows, int64_t stride, T* out) const {
    constexpr int64_t kAhead = 12;  // rows lie too far apart for the processor to see which comes next
    for (int64_t i = 0; i < plan_.length; ++i, out += size_) {
      if (i + kAhead < plan_.length) __builtin_prefetch(rows + position(i + kAhead) * stride);
      take_row(rows + position(i) * stride, out);
      std::fill(out + head_dim_, out + size_, T{});
    }
    std::fill_n(out, (rows_ - plan_.length) * size_, T{});
  }

  template <class In>
  void take_row(const In* in, T* out) const {
    constexpr int64_t kChunk = 16;  // most heads are short: a call for each row would cost more than its copy
    if constexpr (std::is_same_v<In, T>) {
      if (head_dim_ % kChunk == 0) {
        for (int64_t i = 0; i < head_dim_; i += kChunk) std::memcpy(out + i, in + i, kChunk * sizeof(T));
        return;
      }
    }
    convert_row(in, head_dim_, 1, out);
  }

  void compute_scores(const BlockSparsePlan::Block& block) {
    for (const auto& stretch : block.stretches) {
      float* scores = scores_.get() + stretch.column;
      Tiles::product(kQueries, stretch.width, size_, query_rows_.data + block.query * query_rows_.stride,
                     query_rows_.stride, packed_k_.get() + stretch.key * Tiles::kPair, rows_, scores, block.width,
                     false);
      if (stretch.bias < 0) continue;
      add_bias(scores, block.width, plan_.biases.data() + stretch.bias, kQueries, stretch.width);
    }
  }

  const BlockSparsePlan& plan_;
  int64_t head_dim_, size_, rows_;
  float scale_;
  Scratch<T> q_, k_, v_, packed_k_, packed_v_;
  Rows<T> query_rows_{}, key_rows_{}, value_rows_{};
  Scratch<float> scores_;
  Scratch<T> weights_;
  Scratch<float> block_, factors_;
  bool lies_in_place_;                   // a tensor's rows are those of the plan
  std::vector<uint32_t> key_positions_;  // in the plan's order, then zeros
  std::optional<Gradients> gradients_;
};

// Calls work(Head<Tiles>&, batch, head) for every head.
template <class Tiles, class Work>
void for_each_head(const Tensor& q_BHLK, const BlockSparsePlan& plan, const Work& work) {
  const int64_t heads = q_BHLK.size(1);
  at::parallel_for(0, q_BHLK.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    Head<Tiles> head(plan, q_BHLK.size(3));
    for (int64_t i = begin; i < end; ++i) work(head, i / heads, i % heads);
    Tiles::release();
  });
}

template <class Run>
void with_tiles(const Tensor& q_BHLK, AttentionTiles tiles, const Run& run) {
  if (q_BHLK.scalar_type() != at::kBFloat16 || !has_bf16_products()) {
    run.template operator()<BrgemmTiles<float>>();
  } else if (tiles == AttentionTiles::kOwn || (tiles == AttentionTiles::kAuto && !cpu_has_amx())) {
    run.template operator()<PairTiles>();
  } else {
    run.template operator()<BrgemmTiles<Bf16>>();
  }
}

template <class Run>
void with_storage_type(const Tensor& x, const Run& run) {
  if (x.scalar_type() == at::kBFloat16) {
    run.template operator()<Bf16>();
  } else {
    run.template operator()<float>();
  }
}

Tensor empty_rows(const Tensor& q_BHLK) {
  return at::empty({q_BHLK.size(0), q_BHLK.size(2), q_BHLK.size(1), q_BHLK.size(3)}, q_BHLK.options());
}

// Of a head's first row.
template <class T>
T* rows_of(const Tensor& x_BHLK, int64_t batch, int64_t head) {
  return static_cast<T*>(x_BHLK.mutable_data_ptr()) + batch * x_BHLK.stride(0) + head * x_BHLK.stride(1);
}

}  // namespace

AttentionForward attend_blocks(const Tensor& q, const Tensor& k, const Tensor& v, const BlockSparsePlan& plan,
                               const AttentionDropout& dropout, AttentionTiles tiles) {
  const AttentionForward result{empty_rows(q),
                                at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat))};
  const Tensor out_BHLK = result.out_BLHK.transpose(1, 2);
  float* log_normalizers = result.log_normalizer_BHL.mutable_data_ptr<float>();
  with_storage_type(q, [&]<class S>() {
    with_tiles(q, tiles, [&]<class Tiles>() {
      for_each_head<Tiles>(q, plan, [&](Head<Tiles>& work, int64_t batch, int64_t head) {
        work.load({q, batch, head}, {k, batch, head}, {v, batch, head});
        work.forward({dropout, batch, head}, rows_of<S>(out_BHLK, batch, head), out_BHLK.stride(2),
                     log_normalizers + (batch * q.size(1) + head) * plan.length);
      });
    });
  });
  return result;
}

Heads attend_blocks_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                             const AttentionForward& forward, const BlockSparsePlan& plan,
                             const AttentionDropout& dropout, AttentionTiles tiles) {
  const Heads out = empty_heads(q);
  const Tensor grad_rows = grad.stride(3) == 1 ? grad : grad.contiguous();
  const Tensor result_BHLK = forward.out_BLHK.transpose(1, 2);
  const float* log_normalizers = forward.log_normalizer_BHL.const_data_ptr<float>();
  with_storage_type(q, [&]<class S>() {
    with_tiles(q, tiles, [&]<class Tiles>() {
      for_each_head<Tiles>(q, plan, [&](Head<Tiles>& work, int64_t batch, int64_t head) {
        work.load({q, batch, head}, {k, batch, head}, {v, batch, head});
        work.backward({dropout, batch, head}, {grad_rows, batch, head}, {result_BHLK, batch, head},
                      log_normalizers + (batch * q.size(1) + head) * plan.length, rows_of<S>(out.q_BHLK, batch, head),
                      rows_of<S>(out.k_BHLK, batch, head), rows_of<S>(out.v_BHLK, batch, head), out.q_BHLK.stride(2));
      });
    });
  });
  return out;
}

}  // namespace dalle::layers::detail

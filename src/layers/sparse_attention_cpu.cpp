// The loops of block_sparse_attention() over one head: scores of a block of queries against its stretches of keys, softmax,
// values; and the gradients from recomputed scores. Heads are independent, so threads share nothing.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>

#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/bf16_pack.h"
#include "dalle/layers/bf16_product.h"
#include "dalle/layers/sparse_attention.h"

namespace dalle::layers::detail {
namespace {

using Bf16 = uint16_t;
constexpr int64_t kQueries = BlockSparsePlan::kQueries;
constexpr int64_t kLanes = 16;  // as in relaxation_cpu.cpp: sums of a fixed order that vectorise

DALLE_INLINED void put(float& out, float x) { out = x; }
DALLE_INLINED void put(Bf16& out, float x) { out = float_to_bf16(x); }
DALLE_INLINED float get(float x) { return x; }
DALLE_INLINED float get(Bf16 x) { return bf16_to_float(x); }

// scores[r][c] += bias[r][c] for a stretch of a block's rows.
DALLE_VECTORISED void add_bias(float* scores, int64_t stride, const float* bias, int64_t width) {
  for (int64_t r = 0; r < kQueries; ++r, scores += stride, bias += width) {
    for (int64_t c = 0; c < width; ++c) scores[c] += bias[c];
  }
}

DALLE_VECTORISED float row_maximum(const float* row, int64_t width) {
  float maximum[kLanes];
  std::copy_n(row, kLanes, maximum);
  for (int64_t c = kLanes; c < width; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      maximum[lane] = row[c + lane] > maximum[lane] ? row[c + lane] : maximum[lane];
    }
  }
  return *std::max_element(maximum, maximum + kLanes);
}

// out = exp(scale row - shift); returns the sum.
template <class T>
DALLE_INLINED float exponentials(const float* row, int64_t width, float scale, float shift, T* out) {
  float sums[kLanes] = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float e = vector_exp(row[c + lane] * scale - shift);
      sums[lane] += e;
      put(out[c + lane], e);
    }
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

// weights = exp(scale scores - log normalizer), and grad_scores = scale weights (grad_weights - delta).
template <class T>
DALLE_INLINED void softmax_gradient(const float* scores, const float* grad_weights, int64_t width, float scale,
                                    float log_normalizer, float delta, T* weights, T* grad_scores) {
  for (int64_t c = 0; c < width; ++c) {
    const float w = vector_exp(scores[c] * scale - log_normalizer);
    put(weights[c], w);
    put(grad_scores[c], scale * w * (grad_weights[c] - delta));
  }
}

template <class T>
DALLE_INLINED void multiply(const float* factors, int64_t size, T* row) {
  for (int64_t i = 0; i < size; ++i) put(row[i], get(row[i]) * factors[i]);
}

template <class A, class B>
DALLE_INLINED float dot(const A* a, const B* b, int64_t size) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += get(a[i]) * get(b[i]);
  return sum;
}

template <class In, class Out>
DALLE_INLINED void convert(const In* in, int64_t size, float factor, Out* out) {
  if constexpr (std::is_same_v<In, Out>) {
    if (factor == 1) {
      std::copy_n(in, size, out);
      return;
    }
  }
  for (int64_t i = 0; i < size; ++i) put(out[i], get(in[i]) * factor);
}

// clang-format off
DALLE_VECTORISED float exponentials_of(const float* row, int64_t width, float scale, float shift, float* out) { return exponentials(row, width, scale, shift, out); }
DALLE_VECTORISED float exponentials_of(const float* row, int64_t width, float scale, float shift, Bf16* out) { return exponentials(row, width, scale, shift, out); }
DALLE_VECTORISED void softmax_gradient_of(const float* s, const float* g, int64_t width, float scale, float normalizer, float delta, float* weights, float* out) { softmax_gradient(s, g, width, scale, normalizer, delta, weights, out); }
DALLE_VECTORISED void softmax_gradient_of(const float* s, const float* g, int64_t width, float scale, float normalizer, float delta, Bf16* weights, Bf16* out) { softmax_gradient(s, g, width, scale, normalizer, delta, weights, out); }
DALLE_VECTORISED void multiply_row(const float* factors, int64_t size, float* row) { multiply(factors, size, row); }
DALLE_VECTORISED void multiply_row(const float* factors, int64_t size, Bf16* row) { multiply(factors, size, row); }
DALLE_VECTORISED void dropout_row(PairRow row, const uint32_t* keys, int64_t size, uint32_t threshold, float kept, float* factors) {
  for (int64_t i = 0; i < size; ++i) factors[i] = pair_word(row, keys[i]) < threshold ? 0.0f : kept;
}
DALLE_VECTORISED float dot_of(const float* a, const float* b, int64_t size) { return dot(a, b, size); }
DALLE_VECTORISED float dot_of(const Bf16* a, const Bf16* b, int64_t size) { return dot(a, b, size); }
DALLE_VECTORISED void convert_row(const float* in, int64_t size, float factor, float* out) { convert(in, size, factor, out); }
DALLE_VECTORISED void convert_row(const float* in, int64_t size, float factor, Bf16* out) { convert(in, size, factor, out); }
DALLE_VECTORISED void convert_row(const Bf16* in, int64_t size, float factor, float* out) { convert(in, size, factor, out); }
DALLE_VECTORISED void convert_row(const Bf16* in, int64_t size, float factor, Bf16* out) { convert(in, size, factor, out); }
// clang-format on

// A tile product c (+)= a b with b in the order that the processor wants: bf16 in pairs (bf16_pack.h), f32 as it is.
template <class T>
struct Tiles;

template <>
struct Tiles<Bf16> {
  static constexpr int64_t kPair = 2;    // a step of one column in packed b
  static constexpr int64_t kDepth = 32;  // multiple of the head's size
  static void product(int64_t m, int64_t n, int64_t k, const Bf16* a, int64_t lda, const Bf16* b, int64_t ldb, float* c,
                      int64_t ldc, bool adds) {
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, adds, reinterpret_cast<const at::BFloat16*>(a),
                                reinterpret_cast<const at::BFloat16*>(b), c);
  }
  static void pack_columns(const Bf16* rows, int64_t count, int64_t size, Bf16* out) {
    pack_transposed(rows, size, size, count, out, count);
  }
  static void pack(const Bf16* rows, int64_t count, int64_t size, Bf16* out) {
    pack_rows(rows, size, count, size, out, size);
  }
  static void transpose_block(const Bf16* in, int64_t width, Bf16* out) {
    transpose(in, width, kQueries, width, out, kQueries, nullptr);
  }
  static void release() { at::native::cpublas::brgemm_release(); }
};

template <>
struct Tiles<float> {
  static constexpr int64_t kPair = 1;
  static constexpr int64_t kDepth = 1;
  static void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                      float* c, int64_t ldc, bool adds) {
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, adds, a, b, c, /*is_vnni=*/false);
  }
  static void pack_columns(const float* rows, int64_t count, int64_t size, float* out) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < size; ++i) out[i * count + r] = rows[r * size + i];
    }
  }
  static void pack(const float* rows, int64_t count, int64_t size, float* out) { std::copy_n(rows, count * size, out); }
  static void transpose_block(const float* in, int64_t width, float* out) { pack_columns(in, kQueries, width, out); }
  static void release() {}
};

template <class T>
struct Buffer {
  explicit Buffer(int64_t size) : data(std::make_unique_for_overwrite<T[]>(static_cast<size_t>(size))) {}
  T* get() const { return data.get(); }
  std::unique_ptr<T[]> data;
};

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

// Everything about one head, in type T, rows in the plan's order and padded with zeros to whole blocks and `size`.
template <class T>
class Head {
 public:
  Head(const BlockSparsePlan& plan, int64_t head_dim)
      : plan_(plan),
        head_dim_(head_dim),
        size_((head_dim + Tiles<T>::kDepth - 1) / Tiles<T>::kDepth * Tiles<T>::kDepth),
        rows_(plan.padded_length()),
        scale_(1 / std::sqrt(static_cast<float>(head_dim))),
        q_(rows_ * size_),
        k_(rows_ * size_),
        v_(rows_ * size_),
        packed_k_(rows_ * size_),
        packed_v_(rows_ * size_),
        scores_(kQueries * plan.max_width),
        weights_(kQueries * plan.max_width),
        block_(kQueries * size_),
        factors_(plan.max_width),
        key_positions_(static_cast<size_t>(rows_)) {
    std::copy(plan.order.begin(), plan.order.end(), key_positions_.begin());
  }

  void load(const HeadView& q, const HeadView& k, const HeadView& v) {
    gather(q, q_.get());
    gather(k, k_.get());
    gather(v, v_.get());
    Tiles<T>::pack_columns(k_.get(), rows_, size_, packed_k_.get());
  }

  template <class Out>
  void forward(const HeadDropout& dropout, Out* out, int64_t out_stride, float* log_normalizers) {
    Tiles<T>::pack(v_.get(), rows_, size_, packed_v_.get());
    for (const auto& block : plan_.blocks) {
      compute_scores(block);
      float sums[kQueries];
      for (int64_t r = 0; r < block.num_queries; ++r) {
        const float* row = scores_.get() + r * block.width;
        const float shift = row_maximum(row, block.width) * scale_;
        sums[r] = exponentials_of(row, block.width, scale_, shift, weights_.get() + r * block.width);
        log_normalizers[block.query + r] = shift + std::log(sums[r]);
        if (dropout.is_on()) multiply_row(factors(block, r, dropout), block.width, weights_.get() + r * block.width);
      }
      std::fill_n(weights_.get() + block.num_queries * block.width, (kQueries - block.num_queries) * block.width, T{});
      for (const auto& stretch : block.stretches) {
        Tiles<T>::product(kQueries, size_, stretch.width, weights_.get() + stretch.column, block.width,
                          packed_v_.get() + stretch.key * size_, size_, block_.get(), size_, stretch.column > 0);
      }
      for (int64_t r = 0; r < block.num_queries; ++r) {
        convert_row(block_.get() + r * size_, head_dim_, 1 / sums[r], out + position(block.query + r) * out_stride);
      }
    }
  }

  // What the backward pass needs besides.
  struct Gradients {
    Gradients(int64_t rows, int64_t size, int64_t max_width)
        : grad(rows * size),
          out(rows * size),
          packed_grad(rows * size),
          packed_q(rows * size),
          dk(rows * size),
          dv(rows * size),
          grad_weights(kQueries * max_width),
          grad_scores(kQueries * max_width),
          transposed(kQueries * max_width) {}
    Buffer<T> grad, out, packed_grad, packed_q;
    Buffer<float> dk, dv, grad_weights;
    Buffer<T> grad_scores, transposed;
  };
  Gradients make_gradients() const { return Gradients(rows_, size_, plan_.max_width); }

  template <class Out>
  void backward(const HeadDropout& dropout, const HeadView& grad, const HeadView& out, const float* log_normalizers,
                Gradients& g, Out* dq, Out* dk, Out* dv, int64_t out_stride) {
    gather(grad, g.grad.get());
    gather(out, g.out.get());
    Tiles<T>::pack(g.grad.get(), rows_, size_, g.packed_grad.get());
    Tiles<T>::pack(q_.get(), rows_, size_, g.packed_q.get());
    Tiles<T>::pack_columns(v_.get(), rows_, size_, packed_v_.get());
    // The keys as rows, for the queries' gradient.
    Buffer<T>& key_rows = packed_rows_of_keys();
    std::fill_n(g.dk.get(), rows_ * size_, 0.0f);
    std::fill_n(g.dv.get(), rows_ * size_, 0.0f);
    for (const auto& block : plan_.blocks) {
      compute_scores(block);
      for (const auto& stretch : block.stretches) {
        Tiles<T>::product(kQueries, stretch.width, size_, g.grad.get() + block.query * size_, size_,
                          packed_v_.get() + stretch.key * Tiles<T>::kPair, rows_, g.grad_weights.get() + stretch.column,
                          block.width, false);
      }
      for (int64_t r = 0; r < block.num_queries; ++r) {
        const int64_t query = block.query + r, at = r * block.width;
        const float delta = dot_of(g.grad.get() + query * size_, g.out.get() + query * size_, size_);
        if (dropout.is_on()) multiply_row(factors(block, r, dropout), block.width, g.grad_weights.get() + at);
        softmax_gradient_of(scores_.get() + at, g.grad_weights.get() + at, block.width, scale_, log_normalizers[query],
                            delta, weights_.get() + at, g.grad_scores.get() + at);
        if (dropout.is_on()) multiply_row(factors_.get(), block.width, weights_.get() + at);
      }
      const int64_t rest = (kQueries - block.num_queries) * block.width, end = block.num_queries * block.width;
      std::fill_n(weights_.get() + end, rest, T{});
      std::fill_n(g.grad_scores.get() + end, rest, T{});
      for (const auto& stretch : block.stretches) {
        Tiles<T>::product(kQueries, size_, stretch.width, g.grad_scores.get() + stretch.column, block.width,
                          key_rows.get() + stretch.key * size_, size_, block_.get(), size_, stretch.column > 0);
      }
      for (int64_t r = 0; r < block.num_queries; ++r) {
        convert_row(block_.get() + r * size_, head_dim_, 1, dq + position(block.query + r) * out_stride);
      }
      add_transposed(block, g.grad_scores.get(), g.packed_q.get(), g.transposed.get(), g.dk.get());
      add_transposed(block, weights_.get(), g.packed_grad.get(), g.transposed.get(), g.dv.get());
    }
    for (int64_t i = 0; i < plan_.length; ++i) {
      convert_row(g.dk.get() + i * size_, head_dim_, 1, dk + position(i) * out_stride);
      convert_row(g.dv.get() + i * size_, head_dim_, 1, dv + position(i) * out_stride);
    }
  }

 private:
  int64_t position(int64_t i) const { return plan_.order[static_cast<size_t>(i)]; }

  // What the weights of a block's row are multiplied by.
  const float* factors(const BlockSparsePlan::Block& block, int64_t r, const HeadDropout& dropout) {
    const PairRow row = dropout.row(position(block.query + r));
    for (const auto& stretch : block.stretches) {
      dropout_row(row, key_positions_.data() + stretch.key, stretch.width, dropout.dropout.threshold(),
                  dropout.dropout.kept(), factors_.get() + stretch.column);
    }
    return factors_.get();
  }

  void gather(const HeadView& view, T* out) const {
    for (int64_t i = 0; i < plan_.length; ++i, out += size_) {
      const int64_t at = view.offset + position(i) * view.stride;
      if (view.tensor.scalar_type() == at::kFloat) {
        convert_row(data_of<float>(view.tensor) + at, head_dim_, 1, out);
      } else {
        convert_row(data_of<Bf16>(view.tensor) + at, head_dim_, 1, out);
      }
      std::fill(out + head_dim_, out + size_, T{});
    }
    std::fill_n(out, (rows_ - plan_.length) * size_, T{});
  }

  void compute_scores(const BlockSparsePlan::Block& block) {
    for (const auto& stretch : block.stretches) {
      float* scores = scores_.get() + stretch.column;
      Tiles<T>::product(kQueries, stretch.width, size_, q_.get() + block.query * size_, size_,
                        packed_k_.get() + stretch.key * Tiles<T>::kPair, rows_, scores, block.width, false);
      if (stretch.bias >= 0) add_bias(scores, block.width, plan_.biases.data() + stretch.bias, stretch.width);
    }
  }

  Buffer<T>& packed_rows_of_keys() {
    if (!packed_key_rows_) packed_key_rows_ = std::make_unique<Buffer<T>>(rows_ * size_);
    Tiles<T>::pack(k_.get(), rows_, size_, packed_key_rows_->get());
    return *packed_key_rows_;
  }

  // sums[key] += matrix[., key]^T rows[.] over the block's queries; rows packed.
  void add_transposed(const BlockSparsePlan::Block& block, const T* matrix, const T* packed_rows, T* transposed,
                      float* sums) const {
    Tiles<T>::transpose_block(matrix, block.width, transposed);
    for (const auto& stretch : block.stretches) {
      Tiles<T>::product(stretch.width, size_, kQueries, transposed + stretch.column * kQueries, kQueries,
                        packed_rows + block.query * size_, size_, sums + stretch.key * size_, size_, true);
    }
  }

  const BlockSparsePlan& plan_;
  int64_t head_dim_, size_, rows_;
  float scale_;
  Buffer<T> q_, k_, v_, packed_k_, packed_v_;
  Buffer<float> scores_;
  Buffer<T> weights_;
  Buffer<float> block_, factors_;
  std::vector<uint32_t> key_positions_;  // in the plan's order, then zeros
  std::unique_ptr<Buffer<T>> packed_key_rows_;
};

// Calls run(Head<T>&, batch, head) for every head, T the type to compute in.
template <class T, class Run>
void for_each_head(const Tensor& q_BHLK, const BlockSparsePlan& plan, const Run& run) {
  const int64_t heads = q_BHLK.size(1);
  at::parallel_for(0, q_BHLK.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    Head<T> head(plan, q_BHLK.size(3));
    for (int64_t i = begin; i < end; ++i) run(head, i / heads, i % heads);
    Tiles<T>::release();
  });
}

template <class Run>
void with_compute_type(const Tensor& q_BHLK, const Run& run) {
  if (q_BHLK.scalar_type() == at::kBFloat16 && has_bf16_products()) {
    run.template operator()<Bf16>();
  } else {
    run.template operator()<float>();
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
                               const AttentionDropout& dropout) {
  const AttentionForward result{empty_rows(q),
                                at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat))};
  const Tensor out_BHLK = result.out_BLHK.transpose(1, 2);
  float* log_normalizers = result.log_normalizer_BHL.mutable_data_ptr<float>();
  with_storage_type(q, [&]<class S>() {
    with_compute_type(q, [&]<class T>() {
      for_each_head<T>(q, plan, [&](Head<T>& work, int64_t batch, int64_t head) {
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
                             const AttentionDropout& dropout) {
  const Heads out = empty_heads(q);
  const Tensor grad_rows = grad.stride(3) == 1 ? grad : grad.contiguous();
  const Tensor result_BHLK = forward.out_BLHK.transpose(1, 2);
  const float* log_normalizers = forward.log_normalizer_BHL.const_data_ptr<float>();
  with_storage_type(q, [&]<class S>() {
    with_compute_type(q, [&]<class T>() {
      for_each_head<T>(q, plan, [&](Head<T>& work, int64_t batch, int64_t head) {
        auto gradients = work.make_gradients();
        work.load({q, batch, head}, {k, batch, head}, {v, batch, head});
        work.backward({dropout, batch, head}, {grad_rows, batch, head}, {result_BHLK, batch, head},
                      log_normalizers + (batch * q.size(1) + head) * plan.length, gradients,
                      rows_of<S>(out.q_BHLK, batch, head), rows_of<S>(out.k_BHLK, batch, head),
                      rows_of<S>(out.v_BHLK, batch, head), out.q_BHLK.stride(2));
      });
    });
  });
  return out;
}

}  // namespace dalle::layers::detail

#include "dalle/layers/elementwise.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <concepts>

#include "dalle/core/bf16.h"
#include "dalle/core/vectorise.h"

namespace dalle::layers {
namespace {

using Bf16 = uint16_t;

DALLE_INLINED float load(float x) { return x; }
DALLE_INLINED float load(Bf16 x) { return bf16_to_float(x); }
DALLE_INLINED void store(float& out, float x) { out = x; }
DALLE_INLINED void store(Bf16& out, float x) { out = float_to_bf16(x); }

// The loops, inlined into one function for each pair of types, which the compiler then clones for each instruction set.
template <class In, class Out>
DALLE_INLINED void relu_loop(const In* in, int64_t size, Out* out) {
  for (int64_t i = 0; i < size; ++i) {
    const float x = load(in[i]);
    store(out[i], x < 0.0f ? 0.0f : x);  // NaN stays
  }
}

// `width` pixels of `channels` each; each pixel of id is used `repeat` times.
template <class T, class U>
DALLE_INLINED void sum_loop(const T* id, const U* branch, float gain, int64_t width, int64_t channels, int64_t repeat,
                            T* out) {
  for (int64_t w = 0; w < width; ++w) {
    const T* pixel = id + w / repeat * channels;
    for (int64_t c = 0; c < channels; ++c) {
      store(out[w * channels + c], load(pixel[c]) + gain * load(branch[w * channels + c]));
    }
  }
}

template <class T, class U>
DALLE_INLINED void mask_loop(const T* grad, const T* relu_output, const U* other, int64_t size, U* out) {
  for (int64_t i = 0; i < size; ++i) {
    store(out[i], (load(relu_output[i]) == 0.0f ? 0.0f : load(grad[i])) + load(other[i]));
  }
}

// clang-format off
DALLE_VECTORISED void relu_kernel(const Bf16* in, int64_t size, Bf16* out) { relu_loop(in, size, out); }
DALLE_VECTORISED void relu_kernel(const float* in, int64_t size, Bf16* out) { relu_loop(in, size, out); }
DALLE_VECTORISED void relu_kernel(const float* in, int64_t size, float* out) { relu_loop(in, size, out); }
DALLE_VECTORISED void sum_kernel(const Bf16* id, const Bf16* branch, float gain, int64_t width, int64_t channels,
                                 int64_t repeat, Bf16* out) { sum_loop(id, branch, gain, width, channels, repeat, out); }
DALLE_VECTORISED void sum_kernel(const float* id, const Bf16* branch, float gain, int64_t width, int64_t channels,
                                 int64_t repeat, float* out) { sum_loop(id, branch, gain, width, channels, repeat, out); }
DALLE_VECTORISED void sum_kernel(const float* id, const float* branch, float gain, int64_t width, int64_t channels,
                                 int64_t repeat, float* out) { sum_loop(id, branch, gain, width, channels, repeat, out); }
DALLE_VECTORISED void mask_kernel(const Bf16* grad, const Bf16* relu_output, const Bf16* other, int64_t size, Bf16* out) {
  mask_loop(grad, relu_output, other, size, out);
}
DALLE_VECTORISED void mask_kernel(const Bf16* grad, const Bf16* relu_output, const float* other, int64_t size, float* out) {
  mask_loop(grad, relu_output, other, size, out);
}
DALLE_VECTORISED void mask_kernel(const float* grad, const float* relu_output, const float* other, int64_t size, float* out) {
  mask_loop(grad, relu_output, other, size, out);
}
// clang-format on

constexpr int64_t kGrain = 1 << 15;

bool is_bf16(const Tensor& x) { return x.scalar_type() == at::kBFloat16; }
bool fits(const Tensor& x) {
  return x.is_cpu() && (is_bf16(x) || x.scalar_type() == at::kFloat) && x.is_non_overlapping_and_dense();
}
bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && fits(x) && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

const Bf16* bf16_of(const Tensor& x) { return static_cast<const Bf16*>(x.const_data_ptr()); }
const float* f32_of(const Tensor& x) { return x.const_data_ptr<float>(); }
Bf16* mutable_bf16_of(const Tensor& x) { return static_cast<Bf16*>(x.mutable_data_ptr()); }
float* mutable_f32_of(const Tensor& x) { return x.mutable_data_ptr<float>(); }

}  // namespace

Tensor relu_to(const Tensor& x, at::ScalarType type) {
  const bool is_known = fits(x) && (type == at::kBFloat16 || type == at::kFloat) && !(is_bf16(x) && type == at::kFloat);
  if (!is_known) return at::relu(x).to(type);
  const Tensor out = at::empty_like(x, x.options().dtype(type));
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (is_bf16(x)) {
      relu_kernel(bf16_of(x) + begin, end - begin, mutable_bf16_of(out) + begin);
    } else if (is_bf16(out)) {
      relu_kernel(f32_of(x) + begin, end - begin, mutable_bf16_of(out) + begin);
    } else {
      relu_kernel(f32_of(x) + begin, end - begin, mutable_f32_of(out) + begin);
    }
  });
  return out;
}

Tensor residual_sum(const Tensor& id, const Tensor& branch, double gain, bool enlarges) {
  if (!is_channels_last(id) || !is_channels_last(branch) || (is_bf16(id) && !is_bf16(branch))) {
    const Tensor whole = enlarges ? at::upsample_nearest2d(id, branch.sizes().slice(2)) : id;
    return at::add(whole, branch.to(id.scalar_type()), gain);
  }
  const Tensor out = at::empty_like(branch, id.options());
  const int64_t repeat = enlarges ? 2 : 1, channels = id.size(1), height = branch.size(2), width = branch.size(3);
  const int64_t row = width * channels;
  at::parallel_for(0, branch.size(0) * height, std::max<int64_t>(1, kGrain / row), [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      const int64_t from = (y / height * (height / repeat) + y % height / repeat) * (row / repeat), to = y * row;
      const auto g = static_cast<float>(gain);
      if (is_bf16(id)) {
        sum_kernel(bf16_of(id) + from, bf16_of(branch) + to, g, width, channels, repeat, mutable_bf16_of(out) + to);
      } else if (is_bf16(branch)) {
        sum_kernel(f32_of(id) + from, bf16_of(branch) + to, g, width, channels, repeat, mutable_f32_of(out) + to);
      } else {
        sum_kernel(f32_of(id) + from, f32_of(branch) + to, g, width, channels, repeat, mutable_f32_of(out) + to);
      }
    }
  });
  return out;
}

Tensor mask_and_add(const Tensor& grad, const Tensor& relu_output, const Tensor& other) {
  const bool same_layout = grad.strides() == relu_output.strides() && grad.strides() == other.strides();
  const bool is_known = fits(grad) && fits(relu_output) && fits(other) && same_layout &&
                        grad.scalar_type() == relu_output.scalar_type() && (is_bf16(grad) || !is_bf16(other));
  if (!is_known) return at::threshold_backward(grad, relu_output, 0).to(other.scalar_type()).add_(other);
  const Tensor out = grad.scalar_type() == other.scalar_type() ? grad : at::empty_like(other);
  at::parallel_for(0, grad.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const int64_t size = end - begin;
    if (is_bf16(other)) {
      mask_kernel(bf16_of(grad) + begin, bf16_of(relu_output) + begin, bf16_of(other) + begin, size,
                  mutable_bf16_of(out) + begin);
    } else if (is_bf16(grad)) {
      mask_kernel(bf16_of(grad) + begin, bf16_of(relu_output) + begin, f32_of(other) + begin, size,
                  mutable_f32_of(out) + begin);
    } else {
      mask_kernel(f32_of(grad) + begin, f32_of(relu_output) + begin, f32_of(other) + begin, size,
                  mutable_f32_of(out) + begin);
    }
  });
  return out;
}

}  // namespace dalle::layers

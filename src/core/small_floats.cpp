#include "dalle/core/small_floats.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "dalle/core/vectorise.h"

namespace dalle {
namespace {

template <SmallFloat F>
DALLE_INLINED void encode_loop(const float* in, int64_t size, Overflow overflow, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_small_float<F>(in[i], overflow);
}
template <SmallFloat F>
DALLE_INLINED void decode_loop(const uint16_t* in, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = small_float_to_float<F>(in[i]);
}

DALLE_VECTORISED void encode_169(const float* in, int64_t size, Overflow overflow, uint16_t* out) {
  encode_loop<kFloat169>(in, size, overflow, out);
}
DALLE_VECTORISED void encode_0610(const float* in, int64_t size, Overflow overflow, uint16_t* out) {
  encode_loop<kFloat0610>(in, size, overflow, out);
}
DALLE_VECTORISED void decode_169(const uint16_t* in, int64_t size, float* out) {
  decode_loop<kFloat169>(in, size, out);
}
DALLE_VECTORISED void decode_0610(const uint16_t* in, int64_t size, float* out) {
  decode_loop<kFloat0610>(in, size, out);
}

constexpr int64_t kGrain = 1 << 15;

bool is_169(const SmallFloat& format) {
  TORCH_CHECK_VALUE(format == kFloat169 || format == kFloat0610, "[small floats] no loops for this format");
  return format == kFloat169;
}

void check_type(const Tensor& tensor, at::ScalarType type) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == type, "[small floats] expected ", type, ", got ", tensor.scalar_type());
}

uint16_t* words_of(Tensor& tensor) { return static_cast<uint16_t*>(tensor.mutable_data_ptr()); }

}  // namespace

Tensor encode_small_floats(const Tensor& values, const SmallFloat& format, Overflow overflow) {
  check_type(values, at::kFloat);
  if (!values.is_cpu()) return encode_by_operators(values, format, overflow);
  const Tensor in = values.is_non_overlapping_and_dense() ? values : values.contiguous();
  Tensor out = at::empty_like(in, in.options().dtype(at::kShort));  // the same strides, so both are walked as memory
  const auto loop = is_169(format) ? encode_169 : encode_0610;
  const float* source = in.const_data_ptr<float>();
  uint16_t* target = words_of(out);
  at::parallel_for(0, in.numel(), kGrain,
                   [&](int64_t begin, int64_t end) { loop(source + begin, end - begin, overflow, target + begin); });
  return out;
}

Tensor decode_small_floats(const Tensor& bits, const SmallFloat& format) {
  check_type(bits, at::kShort);
  if (!bits.is_cpu()) return decode_by_operators(bits, format);
  const Tensor in = bits.is_non_overlapping_and_dense() ? bits : bits.contiguous();
  Tensor out = at::empty_like(in, in.options().dtype(at::kFloat));
  const auto loop = is_169(format) ? decode_169 : decode_0610;
  const auto* source = static_cast<const uint16_t*>(in.const_data_ptr());
  float* target = out.mutable_data_ptr<float>();
  at::parallel_for(0, in.numel(), kGrain,
                   [&](int64_t begin, int64_t end) { loop(source + begin, end - begin, target + begin); });
  return out;
}

// Every intermediate number of both fits int32: magnitudes have 31 bits.

Tensor encode_by_operators(const Tensor& values, const SmallFloat& format, Overflow overflow) {
  check_type(values, at::kFloat);
  const Tensor bits = values.contiguous().view(at::kInt), magnitude = bits.bitwise_and(0x7FFFFFFF);
  const auto integer = [](uint32_t number) { return static_cast<int64_t>(number); };
  const Tensor odd = magnitude.bitwise_right_shift(format.shift()).bitwise_and(1);
  const int64_t half = int64_t{1} << (format.shift() - 1);
  const float anchor = format.anchor();
  const Tensor subnormal =
      (magnitude.view(at::kFloat) + anchor).view(at::kInt) - integer(std::bit_cast<uint32_t>(anchor));
  // The highest magnitudes are infinity and NaN: so the sum cannot leave int32 where they are cut first.
  const Tensor normal = (magnitude.clamp_max(0x7F800000) + odd + (half - 1)).bitwise_right_shift(format.shift()) -
                        integer(format.rebias() >> format.shift());
  const Tensor rounded = at::where(magnitude.lt(integer(format.rebias() + (1u << 23))), subnormal, normal);
  const Tensor limited = rounded.clamp_max(integer(format.infinity()) - (overflow == Overflow::kClamp ? 1 : 0));
  const Tensor is_nan = values.isnan();
  Tensor code = limited.masked_fill(is_nan, integer(format.quiet_nan()));
  if (format.has_sign) {
    code = code.bitwise_or(bits.bitwise_right_shift(16).bitwise_and(0x8000));
  } else {
    code = code.masked_fill(bits.lt(0).logical_and(is_nan.logical_not()), 0);
  }
  return code.to(at::kShort);
}

Tensor decode_by_operators(const Tensor& bits, const SmallFloat& format) {
  check_type(bits, at::kShort);
  const Tensor words = bits.to(at::kInt), magnitude = words.bitwise_and(static_cast<int64_t>(format.magnitude_mask()));
  const Tensor shifted = magnitude.bitwise_left_shift(format.shift());
  const Tensor normal = at::where(magnitude.ge(static_cast<int64_t>(format.infinity())), shifted.bitwise_or(0x7F800000),
                                  shifted + static_cast<int64_t>(format.rebias()));
  const Tensor subnormal = magnitude.to(at::kFloat) * format.step();
  const Tensor value =
      at::where(magnitude.lt(int64_t{1} << format.mantissa_bits), subnormal, normal.contiguous().view(at::kFloat));
  return format.has_sign ? at::where(words.lt(0), value.neg(), value) : value;
}

}  // namespace dalle

// A row of 8192 codes is 32 KB in f32: every pass after the first reads it from the core's own cache, and the noise is
// made there and never stored.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dalle/core/bf16.h"
#include "dalle/core/random.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/relaxation_kernels.h"

namespace dalle::layers::detail {
namespace {

// Sums and maxima are kept in kLanes independent parts, so that the compiler may use vector registers without being
// allowed to reorder floating-point sums. Their order is fixed: results depend on neither threads nor batch.
constexpr int64_t kLanes = 16;

DALLE_VECTORISED void widen(const uint16_t* in, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = bf16_to_float(in[i]);
}

DALLE_VECTORISED void narrow(const float* in, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16(in[i]);
}

struct Maxima {
  float logits, perturbed;
};

// noise becomes (logits + noise) / temperature.
DALLE_VECTORISED Maxima perturb(const float* logits, float* noise, int64_t size, float inverse_temperature) {
  float max_logit[kLanes], max_perturbed[kLanes];
  std::fill_n(max_logit, kLanes, -std::numeric_limits<float>::infinity());
  std::fill_n(max_perturbed, kLanes, -std::numeric_limits<float>::infinity());
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[i + lane], perturbed = (logit + noise[i + lane]) * inverse_temperature;
      noise[i + lane] = perturbed;
      max_logit[lane] = logit > max_logit[lane] ? logit : max_logit[lane];
      max_perturbed[lane] = perturbed > max_perturbed[lane] ? perturbed : max_perturbed[lane];
    }
  }
  for (int64_t i = whole; i < size; ++i) {
    noise[i] = (logits[i] + noise[i]) * inverse_temperature;
    max_logit[0] = std::max(max_logit[0], logits[i]);
    max_perturbed[0] = std::max(max_perturbed[0], noise[i]);
  }
  return {*std::max_element(max_logit, max_logit + kLanes), *std::max_element(max_perturbed, max_perturbed + kLanes)};
}

struct Sums {
  float exp_logits, weighted_logits, exp_perturbed;  // sum e, sum e (logit - max), sum of the relaxation's numerators
};

float total(const float (&parts)[kLanes]) {
  double sum = 0;
  for (const float part : parts) sum += static_cast<double>(part);
  return static_cast<float>(sum);
}

// perturbed becomes exp(perturbed - its maximum).
DALLE_VECTORISED Sums exponentiate(const float* logits, float* perturbed, int64_t size, Maxima maxima) {
  float sum[kLanes] = {}, weighted[kLanes] = {}, numerators[kLanes] = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float below = logits[i + lane] - maxima.logits, e = vector_exp(below);
      const float numerator = vector_exp(perturbed[i + lane] - maxima.perturbed);
      sum[lane] += e;
      weighted[lane] += e * below;
      numerators[lane] += numerator;
      perturbed[i + lane] = numerator;
    }
  }
  for (int64_t i = whole; i < size; ++i) {
    const float below = logits[i] - maxima.logits, e = vector_exp(below);
    sum[0] += e;
    weighted[0] += e * below;
    perturbed[i] = vector_exp(perturbed[i] - maxima.perturbed);
    numerators[0] += perturbed[i];
  }
  return {total(sum), total(weighted), total(numerators)};
}

DALLE_VECTORISED void scale(float* values, int64_t size, float factor) {
  for (int64_t i = 0; i < size; ++i) values[i] *= factor;
}

// sum(values weights) / sum(weights): the soft codes' sum is 1 but for their rounding, and in bf16 that is enough to let a
// gradient through that all codes share.
DALLE_VECTORISED float weighted_mean(const float* values, const float* weights, int64_t size) {
  float products[kLanes] = {}, sums[kLanes] = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      products[lane] += values[i + lane] * weights[i + lane];
      sums[lane] += weights[i + lane];
    }
  }
  for (int64_t i = whole; i < size; ++i) {
    products[0] += values[i] * weights[i];
    sums[0] += weights[i];
  }
  return total(products) / total(sums);
}

// grad becomes the gradient of the logits through the soft codes: z (g - mean of g under z) / temperature.
DALLE_VECTORISED void add_soft_gradient(float* grad, const float* soft, int64_t size, float mean, float factor) {
  for (int64_t i = 0; i < size; ++i) grad[i] = soft[i] * (grad[i] - mean) * factor;
}

// d KL / d logit_v = p_v (ln p_v - sum p ln p), where sum p ln p = KL - ln V.
DALLE_VECTORISED void add_kl_gradient(float* grad, const float* logits, int64_t size, float log_normalizer,
                                      float negative_entropy, float grad_kl) {
  for (int64_t i = 0; i < size; ++i) {
    const float log_p = logits[i] - log_normalizer;
    grad[i] += grad_kl * vector_exp(log_p) * (log_p - negative_entropy);
  }
}

// A row of a tensor as f32: the tensor's own memory where it is f32, else a copy in `buffer`.
const float* read_row(const Tensor& rows, int64_t row, std::vector<float>& buffer) {
  const int64_t size = rows.size(1);
  if (rows.scalar_type() == at::kFloat) return rows.const_data_ptr<float>() + row * size;
  buffer.resize(static_cast<size_t>(size));
  widen(reinterpret_cast<const uint16_t*>(rows.const_data_ptr<at::BFloat16>()) + row * size, size, buffer.data());
  return buffer.data();
}

void write_row(const float* values, const Tensor& rows, int64_t row) {
  const int64_t size = rows.size(1);
  if (rows.scalar_type() == at::kFloat) {
    std::copy(values, values + size, rows.mutable_data_ptr<float>() + row * size);
  } else {
    narrow(values, size, reinterpret_cast<uint16_t*>(rows.mutable_data_ptr<at::BFloat16>()) + row * size);
  }
}

void check_rows(const Tensor& logits_NV) {
  TORCH_CHECK_VALUE(logits_NV.dim() == 2 && logits_NV.is_contiguous() &&
                        (logits_NV.scalar_type() == at::kFloat || logits_NV.scalar_type() == at::kBFloat16),
                    "[relax] expected contiguous f32 or bf16 rows, got ", logits_NV.scalar_type(), " ",
                    logits_NV.sizes());
}

}  // namespace

RelaxationRows relax_rows_cpu(const Tensor& logits_NV, const Tensor& keys_B2, double temperature, bool hard) {
  check_rows(logits_NV);
  const int64_t rows = logits_NV.size(0), vocab = logits_NV.size(1), positions = rows / keys_B2.size(0);
  const int64_t* keys = keys_B2.const_data_ptr<int64_t>();
  const auto inverse_temperature = static_cast<float>(1 / temperature);
  const double log_vocab = std::log(static_cast<double>(vocab));
  RelaxationRows out{at::empty_like(logits_NV),
                     hard ? at::zeros_like(logits_NV) : Tensor(),
                     {at::empty({rows}, at::kFloat), at::empty({rows}, at::kFloat)}};
  float* log_normalizer = out.statistics.log_normalizer_N.mutable_data_ptr<float>();
  float* kl = out.statistics.kl_N.mutable_data_ptr<float>();
  std::vector<int64_t> best(hard ? static_cast<size_t>(rows) : 0);
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> wide, work(static_cast<size_t>(vocab));
    for (int64_t row = begin; row < end; ++row) {
      const float* logits = read_row(logits_NV, row, wide);
      const int64_t picture = row / positions;
      const RandomKey key{static_cast<uint64_t>(keys[2 * picture]), static_cast<uint64_t>(keys[2 * picture + 1])};
      fill_gumbel(key, row % positions * vocab, vocab, work.data());
      const Maxima maxima = perturb(logits, work.data(), vocab, inverse_temperature);
      if (hard) best[static_cast<size_t>(row)] = std::max_element(work.begin(), work.end()) - work.begin();
      const Sums sums = exponentiate(logits, work.data(), vocab, maxima);
      scale(work.data(), vocab, 1 / sums.exp_perturbed);
      write_row(work.data(), out.soft_NV, row);
      const double log_sum = std::log(static_cast<double>(sums.exp_logits));
      log_normalizer[row] = static_cast<float>(static_cast<double>(maxima.logits) + log_sum);
      kl[row] = static_cast<float>(static_cast<double>(sums.weighted_logits) / static_cast<double>(sums.exp_logits) -
                                   log_sum + log_vocab);
    }
  });
  if (hard) out.hard_NV.scatter_(1, at::tensor(best, at::kLong).unsqueeze(1), 1.0);
  return out;
}

void relax_rows_backward_cpu(const Tensor& grad_soft_NV, const Tensor& grad_kl_N, const Tensor& logits_NV,
                             const Tensor& soft_NV, const RowStatistics& statistics, double temperature,
                             const Tensor& out_NV) {
  const int64_t rows = logits_NV.size(0), vocab = logits_NV.size(1);
  const float log_vocab = std::log(static_cast<float>(vocab));
  const auto inverse_temperature = static_cast<float>(1 / temperature);
  const float* log_normalizer = statistics.log_normalizer_N.const_data_ptr<float>();
  const float* kl = statistics.kl_N.const_data_ptr<float>();
  const Tensor grad_kl = grad_kl_N.defined() ? grad_kl_N.to(at::kFloat).contiguous() : Tensor();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> wide_logits, wide_soft, wide_grad, work(static_cast<size_t>(vocab));
    for (int64_t row = begin; row < end; ++row) {
      if (grad_soft_NV.defined()) {
        const float* soft = read_row(soft_NV, row, wide_soft);
        const float* grad = read_row(grad_soft_NV, row, wide_grad);
        std::copy(grad, grad + vocab, work.begin());
        add_soft_gradient(work.data(), soft, vocab, weighted_mean(grad, soft, vocab), inverse_temperature);
      } else {
        std::fill(work.begin(), work.end(), 0.0f);
      }
      if (grad_kl.defined()) {
        add_kl_gradient(work.data(), read_row(logits_NV, row, wide_logits), vocab, log_normalizer[row],
                        kl[row] - log_vocab, grad_kl.const_data_ptr<float>()[row]);
      }
      write_row(work.data(), out_NV, row);
    }
  });
}

}  // namespace dalle::layers::detail

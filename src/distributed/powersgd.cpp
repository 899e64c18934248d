#include "dalle/distributed/powersgd.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/small_floats.h"
#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

Tensor not_finite(const Tensor& x) { return x.isfinite().all().logical_not(); }

/// One flat tensor as tensors of the shapes of `like`.
std::vector<Tensor> split_as(const Tensor& flat, const std::vector<Tensor>& like) {
  std::vector<Tensor> parts;
  int64_t at = 0;
  for (const Tensor& shape : like) {
    parts.push_back(flat.narrow(0, at, shape.numel()).view(shape.sizes()));
    at += shape.numel();
  }
  return parts;
}

Tensor flattened(const std::vector<Tensor>& parts) {
  std::vector<Tensor> flat;
  for (const Tensor& part : parts) flat.push_back(part.reshape({-1}));
  return at::cat(flat);
}

}  // namespace

int64_t CompressedMatrix::columns(int64_t common_rank) const {
  return std::min({rank > 0 ? rank : common_rank, rows, cols});
}

double compression_rate(std::span<const CompressedMatrix> matrices, int64_t rank) {
  double factors = 0, gradients = 0;
  for (const auto& matrix : matrices) {
    factors += static_cast<double>(matrix.factor_elements(rank));
    gradients += static_cast<double>(matrix.elements());
  }
  return gradients == 0 ? 0 : 1 - factors / gradients;
}

Tensor orthonormal_columns(const Tensor& p) { return std::get<0>(at::linalg_qr(p, "reduced")); }

PowerSgd::PowerSgd(std::vector<CompressedMatrix> matrices, const PowerSgdConfig& config, uint64_t seed,
                   at::TensorOptions options)
    : matrices_(std::move(matrices)), config_(config), options_(options) {
  const auto type = c10::typeMetaToScalarType(options.dtype());
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kDouble, "[powersgd] expected f32 or f64, got ", type);
  TORCH_CHECK_VALUE(config.rank >= 1, "[powersgd] rank must be at least 1, got ", config.rank);
  std::set<std::string> names;
  for (const auto& matrix : matrices_) {
    TORCH_CHECK_VALUE(matrix.elements() > 0, "[powersgd] '", matrix.name, "' is empty");
    TORCH_CHECK_VALUE(names.insert(matrix.name).second, "[powersgd] '", matrix.name, "' occurs twice");
    Buffers buffers{.transposed = matrix.rows > matrix.cols,
                    .m = std::min(matrix.rows, matrix.cols),
                    .n = std::max(matrix.rows, matrix.cols)};
    buffers.rank = matrix.columns(config.rank);
    const RandomKey key = random_key(seed, Purpose::kInit, stable_hash("powersgd." + matrix.name));
    buffers.q0_NR = normal(key, buffers.n * buffers.rank).view({buffers.n, buffers.rank}).to(options);
    store(buffers, at::zeros({buffers.m, buffers.n}, options));
    buffers.gradient_bad = buffers.factors_bad = at::zeros({}, options.dtype(at::kBool));
    buffers_.push_back(std::move(buffers));
  }
}

Tensor PowerSgd::numbers(const Buffers& buffers) const {
  if (config_.error_buffers == ErrorFormat::kF32) return buffers.error_MN;
  return decode_small_floats(buffers.error_MN, kFloat169).to(options_);
}

void PowerSgd::store(Buffers& buffers, const Tensor& error_MN) const {
  const bool small = config_.error_buffers == ErrorFormat::kF16;
  buffers.error_MN = small ? encode_small_floats(error_MN.to(at::kFloat), kFloat169, Overflow::kInfinity) : error_MN;
}

void PowerSgd::add(size_t matrix, const Tensor& gradient, const Tensor& scale) {
  const c10::NoGradGuard no_grad;
  Buffers& buffers = buffers_.at(matrix);
  const auto& shape = matrices_[matrix];
  TORCH_CHECK_VALUE(gradient.sizes() == at::IntArrayRef({shape.rows, shape.cols}), "[powersgd] gradient of '",
                    shape.name, "' expected [", shape.rows, ", ", shape.cols, "], got ", gradient.sizes());
  const Tensor share = (buffers.transposed ? gradient.t() : gradient).to(options_);
  const Tensor bad = not_finite(share);
  buffers.gradient_bad = buffers.gradient_bad.logical_or(bad);
  const Tensor added = scale.defined() ? share / scale.to(options_) : share;
  store(buffers, numbers(buffers) + added.masked_fill(bad, 0));
}

/// Of the round's parts divided by `divisor`, as one flat tensor.
void PowerSgd::start_sum(Round& round, double divisor) const {
  round.sent = flattened(round.parts) / divisor;
  if (config_.factors == ErrorFormat::kF32) {
    round.sum = round.ranks->start_all_reduce_sum(round.sent);
    return;
  }
  // Those of all ranks are gathered and added in the order of ranks. Bytes, since Gloo and NCCL know no int16.
  round.sent = encode_small_floats(round.sent.to(at::kFloat), kFloat169, Overflow::kClamp).view(at::kByte);
  round.gathered = at::empty({round.sent.numel() * round.ranks->world_size()}, round.sent.options());
  round.sum = round.ranks->start_all_gather(round.gathered, round.sent);
}

/// The sums, in the shapes of the parts.
std::vector<Tensor> PowerSgd::finish_sum(Round& round, double divisor) const {
  round.sum.wait();
  Tensor flat = std::exchange(round.sent, Tensor());
  if (config_.factors == ErrorFormat::kF16) {
    const Tensor bits = std::exchange(round.gathered, Tensor()).view(at::kShort);
    const Tensor sum = decode_small_floats(bits.view({round.ranks->world_size(), -1}), kFloat169).sum(0);
    flat = decode_small_floats(encode_small_floats(sum, kFloat169, Overflow::kClamp), kFloat169).to(options_);
  }
  return split_as(flat * divisor, std::exchange(round.parts, {}));
}

PowerSgd::Round PowerSgd::start_p(std::vector<size_t> group, Communicator& ranks) {
  const c10::NoGradGuard no_grad;
  num_ranks_ = ranks.world_size();
  Round round;
  round.group = std::move(group);
  round.ranks = &ranks;
  for (const size_t matrix : round.group) {
    Buffers& buffers = buffers_.at(matrix);
    const Tensor error = numbers(buffers);
    round.parts.push_back(at::mm(error, buffers.q0_NR));
    buffers.factors_bad = not_finite(error).logical_or(not_finite(round.parts.back()));
  }
  if (!round.group.empty()) start_sum(round, config_.p_divisor);
  return round;
}

void PowerSgd::start_q(Round& round) {
  const c10::NoGradGuard no_grad;
  if (round.group.empty()) return;
  const auto all_p = finish_sum(round, config_.p_divisor);
  for (size_t i = 0; i < round.group.size(); ++i) {
    Buffers& buffers = buffers_[round.group[i]];
    const Tensor bad = not_finite(all_p[i]);
    buffers.factors_bad = buffers.factors_bad.logical_or(bad);
    // LAPACK is given numbers only; what comes of a factor that had others is not used.
    const Tensor p = all_p[i].masked_fill(bad, 0) + 1e-6 * at::eye(buffers.m, buffers.rank, options_);
    buffers.p_MR = orthonormal_columns(p);
    round.parts.push_back(at::mm(numbers(buffers).t(), buffers.p_MR));
    buffers.factors_bad = buffers.factors_bad.logical_or(not_finite(round.parts.back()));
  }
  start_sum(round, config_.q_divisor);
}

void PowerSgd::finish(Round& round) {
  const c10::NoGradGuard no_grad;
  if (round.group.empty()) return;
  const auto all_q = finish_sum(round, config_.q_divisor);
  for (size_t i = 0; i < round.group.size(); ++i) {
    Buffers& buffers = buffers_[round.group[i]];
    buffers.q_NR = all_q[i];
    buffers.factors_bad = buffers.factors_bad.logical_or(not_finite(buffers.q_NR));
  }
}

void PowerSgd::reduce_factors(std::vector<size_t> group, Communicator& ranks) {
  Round round = start_p(std::move(group), ranks);
  start_q(round);
  finish(round);
}

Tensor PowerSgd::reduce_rest(std::vector<Tensor>& others, Communicator& ranks) {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> parts, flags;
  for (const Tensor& other : others) parts.push_back(other.detach().to(options_));
  for (const auto& buffers : buffers_) {
    flags.push_back(buffers.gradient_bad);
    flags.push_back(buffers.factors_bad);
  }
  if (!flags.empty()) parts.push_back(at::stack(flags).to(options_));
  if (parts.empty()) return at::zeros({}, options_.dtype(at::kDouble));
  Tensor flat = flattened(parts);
  ranks.all_reduce_sum(flat);
  std::vector<Tensor> sums = split_as(flat, parts);

  Tensor norm_squared = at::zeros({}, options_.dtype(at::kDouble)), any_bad = at::zeros({}, options_.dtype(at::kBool));
  if (!flags.empty()) {
    const Tensor bad = sums.back().gt(0);
    any_bad = bad.any();
    for (size_t i = 0; i < buffers_.size(); ++i) {
      buffers_[i].factors_bad = bad[static_cast<int64_t>(2 * i + 1)];
      if (!buffers_[i].q_NR.defined()) continue;  // a matrix that has no gradient
      norm_squared += at::linalg_vector_norm(buffers_[i].q_NR).to(at::kDouble).square();
    }
  }
  for (size_t i = 0; i < others.size(); ++i) {
    others[i].detach().copy_(sums[i]);
    norm_squared += at::linalg_vector_norm(sums[i]).to(at::kDouble).square();
  }
  return norm_squared.masked_fill(any_bad.logical_or(norm_squared.isfinite().logical_not()),
                                  std::numeric_limits<double>::infinity());
}

Tensor PowerSgd::decompress(size_t matrix) {
  const c10::NoGradGuard no_grad;
  Buffers& buffers = buffers_.at(matrix);
  TORCH_INTERNAL_ASSERT(buffers.q_NR.defined(), "decompress before finish");
  const Tensor error = numbers(buffers), gradient = at::mm(buffers.p_MR, buffers.q_NR.t());
  const Tensor kept = error.masked_fill(not_finite(error), 0);
  store(buffers, at::where(buffers.factors_bad, kept, error - gradient / num_ranks_));
  buffers.p_MR = buffers.q_NR = Tensor();
  buffers.gradient_bad = at::zeros_like(buffers.gradient_bad);
  return buffers.transposed ? gradient.t() : gradient;
}

std::vector<Tensor> PowerSgd::reduce(const std::vector<Tensor>& gradients, std::vector<Tensor>& others,
                                     Communicator& ranks, Tensor& norm_squared) {
  TORCH_CHECK_VALUE(gradients.size() == matrices_.size(), "[powersgd] expected ", matrices_.size(), " gradients, got ",
                    gradients.size());
  std::vector<size_t> all(matrices_.size());
  std::iota(all.begin(), all.end(), size_t{0});
  for (const size_t i : all) add(i, gradients[i]);
  reduce_factors(all, ranks);
  norm_squared = reduce_rest(others, ranks);
  std::vector<Tensor> sums;
  for (const size_t i : all) sums.push_back(decompress(i));
  return sums;
}

Tensor PowerSgd::error(size_t matrix) const {
  const Buffers& buffers = buffers_.at(matrix);
  const Tensor error = numbers(buffers).clone();
  return buffers.transposed ? error.t() : error;
}

std::vector<Tensor> PowerSgd::error_sums(Communicator& ranks) const {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> sums;
  for (size_t i = 0; i < matrices_.size(); ++i) {
    sums.push_back(error(i).contiguous());
    ranks.all_reduce_sum(sums.back());
  }
  return sums;
}

void PowerSgd::load_error_sums(const std::vector<Tensor>& sums, int64_t num_ranks) {
  const c10::NoGradGuard no_grad;
  auto fail = [](const std::string& expected, const std::string& got) {
    throw CheckpointError(Problem{.place = "error buffers", .expected = expected, .got = got});
  };
  if (sums.size() != matrices_.size()) fail(dalle::str(matrices_.size(), " tensors"), dalle::str(sums.size()));
  for (size_t i = 0; i < sums.size(); ++i) {
    const int64_t rows = matrices_[i].rows, cols = matrices_[i].cols;
    if (sums[i].sizes() == at::IntArrayRef({rows, cols})) continue;
    fail(dalle::str("'", matrices_[i].name, "' of shape [", rows, ", ", cols, "]"), dalle::str(sums[i].sizes()));
  }
  for (size_t i = 0; i < sums.size(); ++i) {
    const Tensor share = sums[i].to(options_) / num_ranks;
    store(buffers_[i], (buffers_[i].transposed ? share.t() : share).contiguous());
  }
}

int64_t PowerSgd::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& buffers : buffers_) {
    bytes += static_cast<int64_t>(buffers.error_MN.nbytes() + buffers.q0_NR.nbytes());
  }
  return bytes;
}

}  // namespace dalle::distributed

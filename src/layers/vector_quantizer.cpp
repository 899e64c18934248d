#include "dalle/layers/vector_quantizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "dalle/layers/channels_last.h"

namespace dalle::layers {
namespace {

Parameter& without_gradient(Parameter& parameter) {
  parameter.tensor.set_requires_grad(false);
  return parameter;
}

}  // namespace

VectorQuantizer::VectorQuantizer(Module& parent, std::string name, int64_t vocab_size, int64_t dim)
    : Module(parent, std::move(name)),
      codebook(without_gradient(add_parameter("codebook", {vocab_size, dim},
                                              Init::normal(1 / std::sqrt(static_cast<double>(dim))),
                                              /*decays=*/false))),
      count(without_gradient(add_parameter("count", {vocab_size}, Init::zeros(), /*decays=*/false))) {}

Tensor VectorQuantizer::nearest(const Tensor& x_BDHW) const {
  TORCH_CHECK_VALUE(x_BDHW.dim() == 4 && x_BDHW.size(1) == codebook.tensor.size(1),
                    "[vector quantizer] expected vectors [B, ", codebook.tensor.size(1), ", H, W], got ",
                    x_BDHW.sizes());
  const c10::NoGradGuard no_grad;
  // |x|^2 is the same for every code, so it is left out.
  const Tensor distances_NV =
      at::addmm(codebook.tensor.square().sum(1), channel_rows(x_BDHW), codebook.tensor.t(), /*beta=*/1, /*alpha=*/-2);
  return distances_NV.argmin(1).view({x_BDHW.size(0), x_BDHW.size(2), x_BDHW.size(3)});
}

Tensor VectorQuantizer::lookup(const Tensor& codes_BHW) const {
  return at::embedding(codebook.tensor, codes_BHW).permute({0, 3, 1, 2});
}

Quantized VectorQuantizer::forward(const Tensor& x_BDHW) const {
  Quantized out;
  out.codes_BHW = nearest(x_BDHW);
  const Tensor vectors = lookup(out.codes_BHW).detach();
  out.commitment = (x_BDHW - vectors).square().sum();
  out.vectors_BDHW = vectors + (x_BDHW - x_BDHW.detach());  // exactly the codebook's values: x - x is 0
  return out;
}

CodebookEvidence VectorQuantizer::no_evidence() const {
  return {at::zeros_like(count.tensor), at::zeros_like(codebook.tensor), at::zeros_like(codebook.tensor)};
}

void VectorQuantizer::gather(const Tensor& x_BDHW, const Tensor& codes_BHW, CodebookEvidence& evidence) const {
  const c10::NoGradGuard no_grad;
  const Tensor rows = channel_rows(x_BDHW.detach()), codes = codes_BHW.flatten();
  evidence.counts_V.index_add_(0, codes, at::ones({codes.size(0)}, rows.options()));
  evidence.sums_VD.index_add_(0, codes, rows);
}

void VectorQuantizer::update(const CodebookEvidence& evidence, const CodebookUpdate& options) {
  const c10::NoGradGuard no_grad;
  const double rate = 1 - options.decay;
  Tensor count_V = (count.tensor * options.decay).add_(evidence.counts_V, rate);
  const Tensor hits_V1 = evidence.counts_V.unsqueeze(1);
  const Tensor pull = evidence.sums_VD - hits_V1 * codebook.tensor;  // 0 for a code without hits, whose count may be 0
  Tensor codebook_VD = codebook.tensor.add(pull / count_V.unsqueeze(1).clamp_min(1e-30), rate);
  if (options.restart_share > 0) {
    const Tensor dead_V = count_V < options.restart_share * options.fair_count;
    codebook_VD = at::where(dead_V.unsqueeze(1), evidence.replacements_VD, codebook_VD);
    count_V.masked_fill_(dead_V, options.fair_count);
  }
  if (options.skip.defined()) {
    const Tensor skip = options.skip.to(at::kBool);
    codebook_VD = at::where(skip, codebook.tensor, codebook_VD);
    count_V = at::where(skip, count.tensor, count_V);
  }
  codebook.tensor.copy_(codebook_VD);
  count.tensor.copy_(count_V);
}

}  // namespace dalle::layers

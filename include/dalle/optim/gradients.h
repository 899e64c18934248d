// Norms of gradients, clipping by the global norm (paper B.2: 4), and a check for overflow. Nothing here waits for the
// device but block_norms, which is for logging.
#pragma once

#include <string>
#include <vector>

#include "dalle/layers/module.h"

namespace dalle::optim {

/// L2 norms of the gradients that there are.
struct GradientNorms {
  std::vector<std::string> names;  // of the parameters
  Tensor norms_P;                  // f64 [names], on the parameters' device: f32 norms
};
GradientNorms gradient_norms(const std::vector<layers::NamedParameter>& parameters);

/// L2 norm over all gradients, an f32 scalar on the parameters' device: f32 norms per tensor, added up in f64. 0 where
/// there is no gradient.
Tensor global_norm(const std::vector<layers::NamedParameter>& parameters);
Tensor global_norm(const GradientNorms& norms);

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does. Returns the norm
/// before clipping.
Tensor clip_by_global_norm(const std::vector<layers::NamedParameter>& parameters, double max_norm);

/// The same for a norm that is known already.
void clip_by_global_norm(const std::vector<layers::NamedParameter>& parameters, double max_norm, const Tensor& norm);

/// Bool scalar: no gradient holds an infinity or a NaN.
Tensor all_finite(const std::vector<layers::NamedParameter>& parameters);

/// The residual block a parameter belongs to: "encoder.blocks.group_1.block_1", "visual.transformer.resblocks.3"; for
/// parameters outside blocks the part before the first point, or "encoder.blocks.input" for a dVAE's ends.
std::string block_of(const std::string& parameter_name);

struct BlockNorm {
  std::string block;
  double norm = 0;
};

/// Norm of the gradients of each block, in order of first appearance; parameters without gradient do not count. Waits for
/// the device once.
std::vector<BlockNorm> block_norms(const std::vector<layers::NamedParameter>& parameters);
std::vector<BlockNorm> block_norms(const GradientNorms& gradients);

}  // namespace dalle::optim

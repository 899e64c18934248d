// What a dVAE's numbers look like when it fails, and what helps.
#pragma once

#include <vector>

#include "dalle/training/config.h"
#include "dalle/training/health.h"

namespace dalle::training {

/// kl_at_zero, kl_at_maximum (not for a codebook, whose codes are always certain) and codebook_collapse, with the bounds
/// of `health` and remedies that name this config's values.
std::vector<HealthRule> dvae_health_rules(const DvaeTraining& config);

}  // namespace dalle::training

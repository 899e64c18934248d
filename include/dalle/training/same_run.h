// Ranks of one run must have the same config, program and data; what differs is named before anything is trained.
#pragma once

#include <string>

#include "dalle/distributed/communicator.h"

namespace dalle::training {

/// Throws ConfigError on every rank where a rank's config (a complete one, as YAML), program or data differ from rank 0's:
/// names the rank, the config's key, and both values. The plans as TrainingTask::data_plan() and validation_plan().
void require_same_run(distributed::Communicator& communicator, const std::string& config, const std::string& data_plan,
                      const std::string& validation_plan);

}  // namespace dalle::training

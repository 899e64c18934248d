#include "dalle/training/same_run.h"

#include <torch/headeronly/version.h>

#include "dalle/config/node.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"

namespace dalle::training {
namespace {

/// What this process runs: the program is linked statically but for LibTorch.
std::string program_version() {
  Hasher hasher;
  hasher.update(read_file("/proc/self/exe"));
  return str(hasher.hex(), " with LibTorch " TORCH_VERSION);
}

void require_same_config(distributed::Communicator& communicator, const std::string& config) {
  const auto configs = distributed::gather_texts(communicator, config);
  for (size_t rank = 1; rank < configs.size(); ++rank) {
    const auto changes = config::diff(config::parse_yaml(configs[0], "rank 0's config"),
                                      config::parse_yaml(configs[rank], str("rank ", rank, "'s config")));
    if (changes.empty()) continue;
    const auto& [key, of_first, of_this] = changes.front();
    throw ConfigError(Problem{.place = str("rank ", rank),
                              .expected = str(key, " '", of_first, "', as rank 0 has"),
                              .got = str("'", of_this, "'"),
                              .hint = "start every rank with the same config, --set and --run-dir"});
  }
}

}  // namespace

void require_same_run(distributed::Communicator& communicator, const std::string& config, const std::string& data_plan,
                      const std::string& validation_plan) {
  if (communicator.world_size() == 1) return;
  require_same_config(communicator, config);
  const std::string same_files = "every rank must read the same data set: compare the files on both machines";
  distributed::require_agreement(communicator, {{"program", program_version(), "run the same build on every machine"},
                                                {"training data", data_plan, same_files},
                                                {"validation data", validation_plan, same_files}});
}

}  // namespace dalle::training

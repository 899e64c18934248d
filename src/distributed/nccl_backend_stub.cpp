#include "backends.h"
#include "dalle/core/error.h"

namespace dalle::distributed {

std::unique_ptr<Communicator> make_nccl(const Launch& /*launch*/, const Store& /*store*/, at::Device device) {
  throw ConfigError(Problem{.place = "several processes on " + device.str(),
                            .expected = "a build with NCCL",
                            .got = "one without",
                            .hint = "configure with -DDALLE_WITH_NCCL=ON, or use --device cpu"});
}

}  // namespace dalle::distributed

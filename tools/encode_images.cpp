// A data set -> image tokens of the frozen dVAE.
#include "dalle/distributed/launch_environment.h"
#include "dalle/training/encode_job.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_config_command<EncodeConfig>(
      "encode-images",
      "Encode a data set's pictures to image tokens with the frozen dVAE: several crops of each, all captions kept.",
      argc, argv, run_encode, check_encode, dalle::distributed::is_restart);
}

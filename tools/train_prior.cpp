// Stage 2: trains the autoregressive prior over text and image tokens.
#include "dalle/distributed/launch_environment.h"
#include "dalle/training/prior_task.h"
#include "dalle/training/run_stage.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_config_command<PriorTraining>(
      "train-prior", "Train the autoregressive prior over text and image tokens (stage 2).", argc, argv,
      run_stage<PriorTask, PriorTraining>, check_prior, dalle::distributed::is_restart);
}

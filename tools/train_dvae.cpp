// Stage 1: trains the discrete VAE.
#include "dalle/distributed/launch_environment.h"
#include "dalle/training/dvae_task.h"
#include "dalle/training/run_stage.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_config_command<DvaeTraining>("train-dvae", "Train the discrete VAE (stage 1).", argc, argv,
                                                      run_stage<DvaeTask, DvaeTraining>, check_dvae,
                                                      dalle::distributed::is_restart);
}

// Trains the contrastive model that reranks samples.
#include "dalle/distributed/launch_environment.h"
#include "dalle/training/clip_task.h"
#include "dalle/training/run_stage.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_config_command<ClipTraining>(
      "train-clip", "Train CLIP, which scores pictures against captions.", argc, argv,
      run_stage<ClipTask, ClipTraining>, check_clip, dalle::distributed::is_restart);
}

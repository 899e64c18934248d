// Any pictures against any captions, by CLIP.
#include "dalle/cli/command.h"
#include "dalle/generation/score_images_job.h"

int main(int argc, char** argv) {
  using namespace dalle::generation;
  return dalle::cli::run_flags_command<ScoreImagesOptions>("score-images", "Score pictures against captions by CLIP.",
                                                           "images", argc, argv, run_score_images);
}

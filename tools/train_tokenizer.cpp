// Trains the BPE tokenizer from a data set's captions.
#include "dalle/training/tokenizer_run.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_config_command<TokenizerTraining>("train-tokenizer",
                                                           "Train the BPE tokenizer from a data set's captions.", argc,
                                                           argv, run_tokenizer_training, check_tokenizer_training);
}

// train-tokenizer: captions of the data -> RUN/tokenizer.model, and how well it fits them in the log and RUN/report.txt.
#pragma once

#include "dalle/cli/command.h"
#include "dalle/training/config.h"

namespace dalle::training {

int run_tokenizer_training(const TokenizerTraining& config, const cli::Invocation& call);
void check_tokenizer_training(const TokenizerTraining& config, const cli::Invocation& call);

}  // namespace dalle::training

// Private to sample-and-rerank: what a run draws from, beside captions.
#pragma once

#include <string>
#include <vector>

#include "dalle/distributed/communicator.h"
#include "sample_folder.h"
#include "sample_models.h"

namespace dalle::generation {

/// Image tokens of the prompt picture's upper rows, i64 [rows x grid] on the models' device; undefined without a picture. Throws
/// ConfigError where that is no picture or has not so many rows.
Tensor prompt_tokens(const SampleModels& models, const SampleOptions& options);

/// What an interrupted run must have in common with the one that goes on. How many are drawn together, where, and how many are
/// shown does not matter.
RunDescription describe_run(const SampleOptions& options, const std::vector<std::string>& captions,
                            const SampleModels& models, const Tensor& prompt);

/// Throws ConfigError on every rank where one would draw something else than rank 0.
void require_same_description(distributed::Communicator& ranks, const RunDescription& run);

}  // namespace dalle::generation

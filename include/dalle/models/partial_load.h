// Loading weights of a model of another size: what fits is taken, and everything that was not is reported.
#pragma once

#include <string>
#include <vector>

#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::models {

struct PartialLoad {
  int64_t num_whole = 0;  // parameters that were taken as they are
  int64_t num_parameters = 0;
  std::vector<std::string> in_part;  // "text_embedding.weight: the first 4096 of 16384 rows"
  std::vector<std::string>
      not_loaded;  // parameters that keep their start: "transformer.resblocks.*.ln_1.weight (4): ..."
  std::vector<std::string> not_used;  // tensors of the file that the model has no place for

  /// Lines for the log. The layers of a stack that share a fate are one line.
  std::string report() const;
};

/// Copies by name. A tensor of the parameter's shape is taken whole. Tables that differ in their number of rows alone
/// (embeddings of another vocabulary or context, output heads) are taken row by row as far as both go, a head's bias with
/// them; the other rows keep their start. Everything else of another shape is left alone: a part of a projection is none.
/// Throws CheckpointError where nothing at all fits.
PartialLoad load_what_fits(layers::Module& module, const std::vector<storage::NamedTensor>& tensors,
                           const std::string& place);

}  // namespace dalle::models

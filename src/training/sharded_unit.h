// What a rank holds of a unit of a sharded model.
#pragma once

#include <memory>
#include <vector>

#include "dalle/training/sharded_model.h"

namespace dalle::training {

struct ShardedModel::Unit {
  int64_t index = -1;                              // of the block, -1 for the unit of all else
  std::vector<layers::NamedParameter> parameters;  // of the module: views of the whole
  std::unique_ptr<distributed::FlatUnit> flat;
  layers::Parameter part;                                  // this rank's weights, flat
  std::vector<std::unique_ptr<layers::Parameter>> pieces;  // of it, one for each of flat->slices()
  Tensor gradient;                                         // of the part; from a step's first reduction on
  std::vector<bool> has_gradient;                          // of each parameter, ever
  bool is_reduced = false;                                 // in this pass
  distributed::Pending sum_of_replicas;
};

}  // namespace dalle::training

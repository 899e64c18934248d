// Which parameters weight decay applies to, as a rule that can be printed: matrices and kernels decay; gains, biases and
// embeddings do not (the paper, B.2, gives the number alone).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dalle/layers/module.h"

namespace dalle::optim {

struct ParameterGroup {
  std::string rule;  // "matrices and kernels"
  double weight_decay = 0;
  int64_t num_tensors = 0;
  int64_t num_parameters = 0;
};

/// The groups of the trained parameters, those that decay first; frozen ones belong to none. Groups without parameters
/// are left out.
std::vector<ParameterGroup> parameter_groups(const std::vector<layers::NamedParameter>& parameters,
                                             double weight_decay);

/// Matrices and kernels of residual blocks ("...resblocks.3.mlp.c_fc.weight", "...blocks.group_1.block_1.id_path.w"). They
/// alone may have 16-bit moments (paper 2.4: most parameters, but not gains, biases, embeddings and unembeddings) and
/// compressed gradients (E.2: not those either).
bool is_resblock_matrix(const layers::NamedParameter& parameter);

/// How a matrix of a resblock is cut into shards (paper E.1, table 2).
struct ShardAxis {
  int64_t num_stacked = 1;  // matrices that lie one below the other: queries, keys and values are three, cut apart
  bool by_inputs = false;   // shards are columns of [out, in], else rows of each of the stacked ones
};
ShardAxis shard_axis(const layers::NamedParameter& parameter);

/// "weight decay 0.045: matrices and kernels, 26 tensors of 3,145,728 numbers; 0: gains, biases and embeddings, ..."
std::string describe(const std::vector<ParameterGroup>& groups);

}  // namespace dalle::optim

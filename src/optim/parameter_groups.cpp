#include "dalle/optim/parameter_groups.h"

#include <ATen/core/Tensor.h>

#include "dalle/core/number_text.h"
#include "dalle/core/str.h"

namespace dalle::optim {

std::vector<ParameterGroup> parameter_groups(const std::vector<layers::NamedParameter>& parameters,
                                             double weight_decay) {
  ParameterGroup decaying{.rule = "matrices and kernels", .weight_decay = weight_decay};
  ParameterGroup others{.rule = "gains, biases and embeddings"};
  for (const auto& [name, parameter] : parameters) {
    if (!parameter->tensor.requires_grad()) continue;
    ParameterGroup& group = parameter->decays ? decaying : others;
    ++group.num_tensors;
    group.num_parameters += parameter->tensor.numel();
  }
  std::vector<ParameterGroup> groups;
  for (const auto& group : {decaying, others}) {
    if (group.num_tensors > 0) groups.push_back(group);
  }
  return groups;
}

bool is_resblock_matrix(const layers::NamedParameter& parameter) {
  const std::string name = "." + parameter.name;
  const bool in_resblock =
      name.find(".resblocks.") != std::string::npos || name.find(".blocks.group_") != std::string::npos;
  return in_resblock && parameter.parameter->decays;  // vectors never do; a shard of a matrix is flat
}

ShardAxis shard_axis(const layers::NamedParameter& parameter) {
  return {.num_stacked = parameter.name.ends_with("in_proj_weight") ? 3 : 1,
          .by_inputs = parameter.name.ends_with("mlp.c_proj.weight")};
}

std::string describe(const std::vector<ParameterGroup>& groups) {
  std::string text = "weight decay ";
  for (const auto& group : groups) {
    text +=
        str(&group == &groups.front() ? "" : "; ", group.weight_decay, " on ", group.rule, " (", group.num_tensors,
            group.num_tensors == 1 ? " tensor" : " tensors", ", ", grouped_digits(group.num_parameters), " numbers)");
  }
  return text;
}

}  // namespace dalle::optim

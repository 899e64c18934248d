// Reader of tests/golden/*.safetensors and text files. Kept apart from the storage layer, which it must not depend on.
#pragma once

#include <ATen/ATen.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/layers/module.h"

namespace dalle::testing {

inline std::filesystem::path golden_path(const std::string& file) {
  return std::filesystem::path(DALLE_SOURCE_DIR) / "tests" / "golden" / file;
}

/// Named tensors of one golden file; at() throws with the name that is missing.
class Golden {
 public:
  explicit Golden(const std::string& file) : file_(file) {
    const std::string bytes = read_file(golden_path(file));
    uint64_t header_size = 0;
    std::memcpy(&header_size, bytes.data(), 8);
    const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      const auto shape = entry.at("shape").get<std::vector<int64_t>>();
      const auto begin = entry.at("data_offsets").at(0).get<uint64_t>();
      Tensor tensor = at::empty(shape, scalar_type(entry.at("dtype").get<std::string>()));
      std::memcpy(tensor.mutable_data_ptr(), bytes.data() + 8 + header_size + begin, tensor.nbytes());
      tensors_.emplace(name, tensor);
    }
  }

  const Tensor& at(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw std::runtime_error(dalle::str(file_, " has no tensor ", name));
    return found->second;
  }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  double scalar(const std::string& name) const { return at(name).item<double>(); }

 private:
  static at::ScalarType scalar_type(const std::string& dtype) {
    if (dtype == "F32") return at::kFloat;
    if (dtype == "I64") return at::kLong;
    if (dtype == "U8") return at::kByte;
    throw std::runtime_error(dalle::str("golden files hold no ", dtype));
  }

  std::string file_;
  std::map<std::string, Tensor> tensors_;
};

/// Materialises `module` on the CPU and fills every parameter from the golden file; each must be there with its shape.
inline void load_golden(layers::Module& module, const Golden& golden) {
  module.materialize(at::kCPU);
  for (const auto& [name, parameter] : module.named_parameters()) {
    const Tensor& value = golden.at(name);
    if (value.sizes() != parameter->tensor.sizes()) {
      throw std::runtime_error(dalle::str(name, " is ", parameter->tensor.sizes(), ", golden ", value.sizes()));
    }
    parameter->tensor.detach().copy_(value);
  }
}

}  // namespace dalle::testing

#include "dalle/models/partial_load.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::models {
namespace {

using Tensors = std::map<std::string, Tensor>;

// "transformer.resblocks.12.ln_1.weight" -> "transformer.resblocks.*.ln_1.weight"
std::string without_numbers(const std::string& name) {
  std::string out;
  for (size_t start = 0; start <= name.size();) {
    const size_t end = std::min(name.find('.', start), name.size());
    const std::string part = name.substr(start, end - start);
    const bool number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    out += (start == 0 ? "" : ".") + (number ? "*" : part);
    start = end + 1;
  }
  return out;
}

// Collects names by what is said of them, layers of a stack together, in the order of their first appearance.
class Fates {
 public:
  void add(const std::string& name, const std::string& fate) {
    const std::string general = without_numbers(name);
    for (auto& entry : entries_) {
      if (entry.general != general || entry.fate != fate) continue;
      ++entry.count;
      return;
    }
    entries_.push_back({general, name, fate, 1});
  }
  std::vector<std::string> lines() const {
    std::vector<std::string> out;
    for (const auto& entry : entries_) {
      const std::string name = entry.count == 1 ? entry.first : str(entry.general, " (", entry.count, ")");
      out.push_back(entry.fate.empty() ? name : name + ": " + entry.fate);
    }
    return out;
  }

 private:
  struct Entry {
    std::string general, first, fate;
    int64_t count = 0;
  };
  std::vector<Entry> entries_;
};

bool differ_in_rows_alone(const Tensor& a, const Tensor& b) {
  return a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(1);
}

// Tables, and the biases of tables.
bool goes_by_rows(const std::string& name, const Tensor& parameter, const Tensors& given, const Tensors& wanted) {
  const Tensor& other = given.at(name);
  if (differ_in_rows_alone(parameter, other)) return true;
  constexpr std::string_view kBias = ".bias";
  if (parameter.dim() != 1 || other.dim() != 1 || !name.ends_with(kBias)) return false;
  const std::string table = name.substr(0, name.size() - kBias.size()) + ".weight";
  const auto a = wanted.find(table), b = given.find(table);
  return a != wanted.end() && b != given.end() && differ_in_rows_alone(a->second, b->second) &&
         a->second.size(0) == parameter.size(0) && b->second.size(0) == other.size(0);
}

std::string listed(const std::string& title, const std::vector<std::string>& lines) {
  std::string text;
  for (const auto& line : lines) text += "\n    " + line;
  return lines.empty() ? "" : "\n  " + title + text;
}

}  // namespace

std::string PartialLoad::report() const {
  return str(num_whole, " of ", num_parameters, " parameters loaded whole",
             listed("loaded in part, the rest as at the start:", in_part),
             listed("not loaded, as at the start:", not_loaded), listed("in the file and not used:", not_used));
}

PartialLoad load_what_fits(layers::Module& module, const std::vector<storage::NamedTensor>& tensors,
                           const std::string& place) {
  const c10::NoGradGuard no_grad;
  Tensors given, wanted;
  for (const auto& [name, tensor] : tensors) given[name] = tensor;
  for (const auto& [name, parameter] : module.named_parameters()) wanted[name] = parameter->tensor;
  PartialLoad result;
  Fates in_part, not_loaded, not_used;
  for (const auto& [name, parameter] : module.named_parameters()) {
    ++result.num_parameters;
    Tensor& tensor = parameter->tensor;
    const auto found = given.find(name);
    if (found == given.end()) {
      not_loaded.add(name, "not in the file");
    } else if (found->second.sizes() == tensor.sizes()) {
      tensor.copy_(found->second);
      ++result.num_whole;
    } else if (goes_by_rows(name, tensor, given, wanted)) {
      const int64_t rows = std::min(tensor.size(0), found->second.size(0));
      tensor.slice(0, 0, rows).copy_(found->second.slice(0, 0, rows));
      in_part.add(
          name, str("the first ", rows, " rows; the file has ", found->second.size(0), ", the model ", tensor.size(0)));
    } else {
      not_loaded.add(name, dalle::str("the file has ", found->second.sizes(), ", the model ", tensor.sizes()));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!wanted.contains(name)) not_used.add(name, "");
  }
  result.in_part = in_part.lines();
  result.not_loaded = not_loaded.lines();
  result.not_used = not_used.lines();
  if (result.num_whole == 0 && result.in_part.empty()) {
    throw CheckpointError(Problem{place, "tensors that fit the model of this config", result.report(),
                                  "compare the model sections of the two configs"});
  }
  return result;
}

}  // namespace dalle::models

// Error buffers in checkpoints: sums over ranks, in the parameters' shapes.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/training/gradient_compression.h"

namespace dalle::training {
namespace {

constexpr std::string_view kErrorPrefix = "powersgd.";

}  // namespace

bool GradientCompression::is_state(const std::string& name) { return name.starts_with(kErrorPrefix); }

std::vector<storage::TensorPiece> GradientCompression::state() const {
  const c10::NoGradGuard no_grad;
  const auto sums = powersgd_.error_sums(*share_.replicas);
  std::vector<storage::TensorPiece> state;
  for (const Piece& piece : pieces_) {
    // Of a piece all ranks of a group write their part, compressed or not, so that the parts are the whole.
    const bool is_written = piece.is_flat ? optim::is_resblock_matrix(piece.entry) : !piece.regions.empty();
    if (!is_written && !piece.carried.defined()) continue;
    const auto options = piece.entry.parameter->tensor.options().requires_grad(false);
    const Tensor values =
        at::zeros(piece.is_flat ? at::IntArrayRef(piece.numel()) : at::IntArrayRef(piece.shape), options);
    for (size_t i = 0; i < piece.regions.size(); ++i) {
      put(piece, piece.regions[i], sums[piece.first_matrix + i], values);
    }
    // No update has taken it yet; each rank has the same share.
    if (piece.carried.defined()) values.add_(piece.carried.view_as(values), share_.replicas->world_size());
    state.push_back({.name = std::string(kErrorPrefix) + piece.entry.name,
                     .shape = piece.shape,
                     .ranges = piece.ranges,
                     .order = piece.order,
                     .values = values.flatten()});
  }
  return state;
}

/// `read`: the numbers of a piece, flat, or nothing.
void GradientCompression::load_from(const std::function<Tensor(const Piece&)>& read) {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> sums;
  for (Piece& piece : pieces_) {
    const Tensor given = optim::is_resblock_matrix(piece.entry) ? read(piece) : Tensor();
    const Tensor& parameter = piece.entry.parameter->tensor;
    Tensor values = at::zeros_like(parameter.detach(), at::MemoryFormat::Contiguous);
    if (given.defined()) values.copy_(given.view_as(values));
    for (const Region& region : piece.regions) {
      sums.push_back(values_of(piece, region, values).clone());
      put(piece, region, at::zeros_like(sums.back()), values);
    }
    piece.carried = Tensor();
    if (given.defined() && values.ne(0).any().item<bool>()) piece.carried = values / share_.replicas->world_size();
  }
  powersgd_.load_error_sums(sums, share_.replicas->world_size());
}

void GradientCompression::load_state(std::vector<storage::NamedTensor>& state) {
  const auto fail = [](const std::string& expected, const std::string& got) {
    throw CheckpointError(
        Problem{.place = "error buffers", .expected = expected, .got = got, .hint = "it belongs to another model"});
  };
  std::vector<std::string> used;
  load_from([&](const Piece& piece) {
    const std::string name = std::string(kErrorPrefix) + piece.entry.name;
    const Tensor* sum = storage::find_tensor(state, name);
    if (sum == nullptr) return Tensor();
    if (sum->sizes() != at::IntArrayRef(piece.shape)) {
      fail(dalle::str("'", name, "' of shape ", at::IntArrayRef(piece.shape)), dalle::str(sum->sizes()));
    }
    used.push_back(name);
    TORCH_INTERNAL_ASSERT(!piece.is_flat, "pieces read their numbers from files");
    return sum->flatten();
  });
  std::erase_if(state,
                [&](const auto& entry) { return std::find(used.begin(), used.end(), entry.name) != used.end(); });
  for (const auto& entry : state) {
    if (is_state(entry.name)) fail("those of the model's matrices", str("'", entry.name, "'"));
  }
}

void GradientCompression::load_state(const storage::TensorFiles& files) {
  load_from([&](const Piece& piece) {
    const std::string name = std::string(kErrorPrefix) + piece.entry.name;
    const auto* shape = files.shape(name);
    if (shape == nullptr) return Tensor();
    if (*shape != piece.shape) {
      throw CheckpointError(Problem{.place = "error buffers",
                                    .expected = dalle::str("'", name, "' of shape ", at::IntArrayRef(piece.shape)),
                                    .got = dalle::str(at::IntArrayRef(*shape)),
                                    .hint = "it belongs to another model"});
    }
    return piece.is_flat ? files.read_ranges(name, piece.ranges, piece.order) : files.read(name);
  });
}

}  // namespace dalle::training

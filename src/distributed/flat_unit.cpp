#include "dalle/distributed/flat_unit.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>

namespace dalle::distributed {
namespace {

/// Tensors begin at multiples of so many numbers: 64 bytes in f32, for kernels that load vectors.
constexpr int64_t kAlignment = 16;

int64_t aligned(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

int64_t FlatShape::numel() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

FlatLayout::FlatLayout(const std::vector<FlatShape>& shapes, int64_t num_parts) {
  int64_t size = 0;
  for (const auto& shape : shapes) {
    offsets.push_back(size);
    numels.push_back(shape.numel());
    size += aligned(shape.numel());
  }
  part_size = aligned((size + num_parts - 1) / num_parts);
}

std::vector<FlatSlice> FlatLayout::slices(int64_t part) const {
  const int64_t first = part_size * part, last = first + part_size;
  std::vector<FlatSlice> slices;
  for (size_t i = 0; i < offsets.size(); ++i) {
    const int64_t begin = std::max(first, offsets[i]), end = std::min(last, offsets[i] + numels[i]);
    if (begin < end) slices.push_back({i, begin - offsets[i], end - offsets[i], begin - first});
  }
  return slices;
}

FlatUnit::FlatUnit(std::vector<FlatShape> shapes, const at::TensorOptions& options, Communicator& group)
    : shapes_(std::move(shapes)),
      layout_(shapes_, group.world_size()),
      slices_(layout_.slices(group.rank())),
      group_(group),
      whole_(at::zeros({layout_.part_size * group.world_size()}, options.requires_grad(false))) {}

// Not a view in autograd's sense: that would share the buffer's version, which each gather changes.
Tensor FlatUnit::view(size_t tensor) const {
  TORCH_INTERNAL_ASSERT(has_memory_);
  const c10::NoGradGuard no_grad;
  Tensor view = at::empty({0}, whole_.options());
  return view.set_(whole_.storage(), layout_.offsets[tensor], shapes_[tensor].sizes, shapes_[tensor].strides);
}

Tensor FlatUnit::own_part() const { return whole_.narrow(0, layout_.part_size * group_.rank(), layout_.part_size); }

void FlatUnit::allocate() {
  const c10::DeviceGuard on_device(whole_.device());
  auto* storage = whole_.storage().unsafeGetStorageImpl();
  const size_t bytes = whole_.nbytes();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
  storage->set_nbytes(bytes);
  has_memory_ = true;
}

void FlatUnit::start_gather(const Tensor& part) {
  if (has_memory_) return;
  allocate();
  gathering_ = group_.start_all_gather(whole_, part);
  is_gathering_ = true;
}

void FlatUnit::gather(const Tensor& part) {
  start_gather(part);
  if (!is_gathering_) return;
  gathering_.wait();
  is_gathering_ = false;
}

void FlatUnit::gather_again(const Tensor& part) {
  TORCH_INTERNAL_ASSERT(is_whole());
  const Tensor own = part.is_alias_of(whole_) ? part.clone() : part;
  group_.start_all_gather(whole_, own).wait();
}

void FlatUnit::release() {
  if (!has_memory_) return;
  if (is_gathering_) gathering_.wait();
  is_gathering_ = false;
  auto* storage = whole_.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, whole_.device()));
  storage->set_nbytes(0);
  has_memory_ = false;
}

void FlatUnit::start_reduce(const std::vector<Tensor>& gradients) {
  TORCH_INTERNAL_ASSERT(gradients.size() == shapes_.size() && !is_reducing());
  const c10::NoGradGuard no_grad;
  const Tensor flat = at::zeros({whole_.numel()}, whole_.options());
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    flat.as_strided(shapes_[i].sizes, shapes_[i].strides, layout_.offsets[i]).copy_(gradients[i]);
  }
  reduced_ = at::empty({layout_.part_size}, whole_.options());
  reducing_ = group_.start_reduce_scatter_sum(reduced_, flat);
}

Tensor FlatUnit::finish_reduce() {
  TORCH_INTERNAL_ASSERT(is_reducing());
  reducing_.wait();
  return std::exchange(reduced_, Tensor());
}

}  // namespace dalle::distributed

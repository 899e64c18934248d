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

std::vector<int64_t> FlatShape::strides() const {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    const size_t dimension = order.empty() ? i : static_cast<size_t>(order[i]);
    strides[dimension] = stride;
    stride *= sizes[dimension];
  }
  return strides;
}

FlatLayout::FlatLayout(const std::vector<FlatShape>& shapes, int64_t num_parts) : num_parts_(num_parts) {
  for (const auto& shape : shapes) {
    Place& place = places_.emplace_back(Place{whole_size_, shape.numel(), shape.num_segments, std::ssize(segments_)});
    if (place.num_segments == 0) continue;
    TORCH_CHECK_VALUE(place.numel % (place.num_segments * num_parts) == 0, "[flat layout] ", num_parts,
                      " parts do not share out ", place.num_segments, " segments of ", place.numel, " numbers");
    const int64_t segment = place.numel / place.num_segments, share = segment / num_parts;
    for (int64_t i = 0; i < place.num_segments; ++i) {
      segments_.push_back({whole_size_ + i * segment, part_size_ + i * share, share, shape.may_be_rounded});
    }
    whole_size_ = aligned(whole_size_ + place.numel);
    part_size_ = aligned(part_size_ + place.num_segments * share);
  }
  share_out(shapes, /*may_be_rounded=*/true);
  share_out(shapes, /*may_be_rounded=*/false);
}

/// Tensors without segments of their own: one after the other, as one segment.
void FlatLayout::share_out(const std::vector<FlatShape>& shapes, bool may_be_rounded) {
  const int64_t begin = whole_size_;
  for (size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[i];
    if (place.num_segments > 0 || shapes[i].may_be_rounded != may_be_rounded) continue;
    place.offset = whole_size_;
    place.first_segment = std::ssize(segments_);
    whole_size_ += aligned(place.numel);
  }
  if (whole_size_ == begin) return;
  const int64_t share = aligned((whole_size_ - begin + num_parts_ - 1) / num_parts_);
  segments_.push_back({begin, part_size_, share, may_be_rounded});
  part_size_ += share;
  whole_size_ = begin + share * num_parts_;
}

std::vector<FlatSlice> FlatLayout::slices(int64_t part) const {
  std::vector<FlatSlice> slices;
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    if (place.numel == 0) continue;
    FlatSlice slice{.tensor = i};
    for (int64_t j = 0; j < std::max<int64_t>(1, place.num_segments); ++j) {
      const FlatSegment& segment = segments_[static_cast<size_t>(place.first_segment + j)];
      const int64_t first = segment.begin + segment.share * part;
      const int64_t begin = std::max(first, place.offset);
      const int64_t end = std::min(first + segment.share, place.offset + place.numel);
      if (begin >= end) continue;
      if (slice.ranges.empty()) slice.offset = segment.offset + begin - first;
      slice.ranges.push_back({begin - place.offset, end - place.offset});
    }
    if (!slice.ranges.empty()) slices.push_back(std::move(slice));
  }
  return slices;
}

FlatUnit::FlatUnit(std::vector<FlatShape> shapes, const at::TensorOptions& options, Communicator& group,
                   std::optional<at::ScalarType> sent_type)
    : shapes_(std::move(shapes)),
      layout_(shapes_, group.world_size()),
      slices_(layout_.slices(group.rank())),
      group_(group),
      sent_type_(sent_type),
      whole_(at::zeros({layout_.whole_size()}, options.requires_grad(false))) {}

// Not a view in autograd's sense: that would share the buffer's version, which each gather changes.
Tensor FlatUnit::view(size_t tensor) const {
  TORCH_INTERNAL_ASSERT(has_memory_);
  const c10::NoGradGuard no_grad;
  Tensor view = at::empty({0}, whole_.options());
  return view.set_(whole_.storage(), layout_.tensor_offset(tensor), shapes_[tensor].sizes, shapes_[tensor].strides());
}

Tensor FlatUnit::own_part() const {
  const auto own = [this](const FlatSegment& segment) {
    return whole_.narrow(0, segment.begin + segment.share * group_.rank(), segment.share);
  };
  if (is_one_segment()) return own(layout_.segments()[0]);
  const Tensor part = at::zeros({layout_.part_size()}, whole_.options());
  for (const auto& segment : layout_.segments()) part.narrow(0, segment.offset, segment.share).copy_(own(segment));
  return part;
}

Tensor FlatUnit::segment_of_whole(const Tensor& whole, const FlatSegment& segment) const {
  return whole.narrow(0, segment.begin, segment.share * group_.world_size());
}

bool FlatUnit::is_one_segment() const {
  return layout_.segments().size() == 1 && layout_.segments()[0].share == layout_.part_size();
}

at::ScalarType FlatUnit::type_of(const FlatSegment& segment) const {
  return is_rounded_ && segment.may_be_rounded ? *sent_type_ : whole_.scalar_type();
}

/// Bytes of a segment's share on its way, to a multiple that any type divides.
int64_t FlatUnit::bytes_of(const FlatSegment& segment) const {
  return aligned(segment.share * static_cast<int64_t>(c10::elementSize(type_of(segment))));
}

/// u8 [..., bytes of a part] as the shares of all segments [..., share] in the types they are sent in.
std::vector<Tensor> FlatUnit::unpacked(const Tensor& bytes) const {
  std::vector<Tensor> shares;
  int64_t at = 0;
  for (const auto& segment : layout_.segments()) {
    const int64_t size = bytes_of(segment);
    shares.push_back(bytes.narrow(-1, at, size).view(type_of(segment)).narrow(-1, 0, segment.share));
    at += size;
  }
  return shares;
}

void FlatUnit::start_all_gather(const Tensor& part) {
  const c10::NoGradGuard no_grad;
  is_gathering_ = true;
  if (is_one_segment() && !is_rounded_) {
    if (!has_memory_) allocate();
    gathering_ = group_.start_all_gather(whole_, part);
    return;
  }
  int64_t bytes = 0;
  for (const auto& segment : layout_.segments()) bytes += bytes_of(segment);
  const Tensor sent = at::zeros({bytes}, whole_.options().dtype(at::kByte));
  const auto shares = unpacked(sent);
  for (size_t i = 0; i < shares.size(); ++i) {
    shares[i].copy_(part.narrow(0, layout_.segments()[i].offset, layout_.segments()[i].share));
  }
  received_ = at::empty({group_.world_size() * bytes}, sent.options());
  gathering_ = group_.start_all_gather(received_, sent);
}

void FlatUnit::finish_all_gather() {
  const c10::NoGradGuard no_grad;
  std::exchange(gathering_, Pending()).wait();
  is_gathering_ = false;
  if (!received_.defined()) return;
  if (!has_memory_) allocate();
  const auto shares = unpacked(received_.view({group_.world_size(), -1}));
  for (size_t i = 0; i < shares.size(); ++i) {
    segment_of_whole(whole_, layout_.segments()[i]).view(shares[i].sizes()).copy_(shares[i]);
  }
  received_.reset();
}

void FlatUnit::allocate() {
  const c10::DeviceGuard on_device(whole_.device());
  auto* storage = whole_.storage().unsafeGetStorageImpl();
  const size_t bytes = whole_.nbytes();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
  storage->set_nbytes(bytes);
  has_memory_ = true;
}

void FlatUnit::start_gather(const Tensor& part, Gather values) {
  if (is_rounded_ && values == Gather::kExact) release();
  if (has_memory_ || is_gathering_) return;
  is_rounded_ = values == Gather::kRounded && sent_type_.has_value();
  start_all_gather(part);
}

void FlatUnit::gather(const Tensor& part, Gather values) {
  start_gather(part, values);
  if (is_gathering_) finish_all_gather();
}

void FlatUnit::gather_again(const Tensor& part) {
  TORCH_INTERNAL_ASSERT(is_whole());
  is_rounded_ = false;
  start_all_gather(part.is_alias_of(whole_) ? part.clone() : part);
  finish_all_gather();
}

void FlatUnit::release() {
  std::exchange(gathering_, Pending()).wait();
  is_gathering_ = false;
  received_.reset();
  if (!has_memory_) return;
  auto* storage = whole_.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, whole_.device()));
  storage->set_nbytes(0);
  has_memory_ = false;
}

void FlatUnit::start_reduce(std::vector<Tensor> gradients) {
  TORCH_INTERNAL_ASSERT(gradients.size() == shapes_.size() && !is_reducing());
  const c10::NoGradGuard no_grad;
  Tensor flat = at::zeros({whole_.numel()}, whole_.options());
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    flat.as_strided(shapes_[i].sizes, shapes_[i].strides(), layout_.tensor_offset(i)).copy_(gradients[i]);
    gradients[i].reset();
  }
  if (!is_one_segment()) {  // by parts
    const Tensor parts = at::zeros({group_.world_size(), layout_.part_size()}, whole_.options());
    for (const auto& segment : layout_.segments()) {
      parts.narrow(1, segment.offset, segment.share)
          .copy_(segment_of_whole(flat, segment).view({group_.world_size(), segment.share}));
    }
    flat = parts.view({-1});
  }
  reduced_ = at::empty({layout_.part_size()}, whole_.options());
  reducing_ = group_.start_reduce_scatter_sum(reduced_, flat);
}

Tensor FlatUnit::finish_reduce() {
  TORCH_INTERNAL_ASSERT(is_reducing());
  std::exchange(reducing_, Pending()).wait();
  return std::exchange(reduced_, Tensor());
}

}  // namespace dalle::distributed

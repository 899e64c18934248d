#include "dalle/distributed/gradient_reducer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>

#include "dalle/distributed/gradient_watch.h"

namespace dalle::distributed {
namespace {

struct Slot {
  Tensor parameter;
  int64_t bucket = -1;  // -1: no rank has a gradient for it
  Tensor view;          // of the bucket's memory, with the parameter's layout
};

struct Bucket {
  std::vector<size_t> slots;
  Tensor flat;
  int64_t missing = 0;  // gradients that this pass has yet to complete
  Pending reduction;
};

int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(tensor.element_size()); }

// A parameter without holes, whatever the order of its dimensions, takes numel() places in its bucket.
void check_dense_memory(const Tensor& parameter) {
  TORCH_CHECK_VALUE(parameter.is_leaf() && parameter.is_non_overlapping_and_dense(),
                    "[gradient reducer] expected leaf tensors without holes in memory, got strides ",
                    parameter.strides(), " for ", parameter.sizes());
}

}  // namespace

struct GradientReducer::State {
  State(Communicator& communicator, int64_t bucket_bytes) : communicator(communicator), bucket_bytes(bucket_bytes) {}

  void on_complete(size_t index) {
    TORCH_INTERNAL_ASSERT(slots[index].bucket >= 0);
    --buckets[static_cast<size_t>(slots[index].bucket)].missing;
    // In order, so that all ranks start the same reductions one after the other.
    while (num_started < buckets.size() && buckets[num_started].missing == 0) start_next();
  }

  void start_next() {
    Bucket& bucket = buckets[num_started++];
    for (const size_t index : bucket.slots) {
      Slot& slot = slots[index];
      Tensor& gradient = slot.parameter.mutable_grad();
      if (gradient.defined()) {
        slot.view.copy_(gradient);
      } else {
        slot.view.zero_();
      }
      gradient = slot.view;
    }
    bucket.reduction = communicator.start_all_reduce_sum(bucket.flat);
  }

  void plan() {
    for (const size_t index : agreed_order()) {
      const Tensor& parameter = slots[index].parameter;
      const auto size_with = [&](const Bucket& bucket) {
        int64_t bytes = bytes_of(parameter);
        for (const size_t other : bucket.slots) bytes += bytes_of(slots[other].parameter);
        return bytes;
      };
      const auto fits = [&](const Bucket& bucket) {
        return size_with(bucket) <= bucket_bytes &&
               slots[bucket.slots.front()].parameter.scalar_type() == parameter.scalar_type();
      };
      if (buckets.empty() || !fits(buckets.back())) buckets.emplace_back();
      buckets.back().slots.push_back(index);
    }
    for (size_t b = 0; b < buckets.size(); ++b) allocate(static_cast<int64_t>(b));
    is_planned = true;
  }

  /// Parameters that any rank has a gradient for, in the order in which rank 0 got theirs, then the others.
  std::vector<size_t> agreed_order() {
    const auto size = static_cast<int64_t>(slots.size());
    Tensor seen = at::empty({size}, at::kLong), has_gradient = at::empty({size}, at::kLong);
    for (int64_t i = 0; i < size; ++i) {
      const Slot& slot = slots[static_cast<size_t>(i)];
      seen.mutable_data_ptr<int64_t>()[i] = watch->place(static_cast<size_t>(i));
      has_gradient.mutable_data_ptr<int64_t>()[i] = slot.parameter.grad().defined() ? 1 : 0;
    }
    communicator.broadcast(seen, 0);
    communicator.all_reduce_sum(has_gradient);
    std::vector<size_t> order(slots.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::erase_if(order, [&](size_t i) { return has_gradient.const_data_ptr<int64_t>()[i] == 0; });
    const auto place = [&](size_t i) {  // unseen ones last
      return static_cast<uint64_t>(seen.const_data_ptr<int64_t>()[i]);
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return place(a) < place(b); });
    return order;
  }

  void allocate(int64_t number) {
    Bucket& bucket = buckets[static_cast<size_t>(number)];
    int64_t numel = 0;
    for (const size_t index : bucket.slots) numel += slots[index].parameter.numel();
    bucket.flat = at::empty({numel}, slots[bucket.slots.front()].parameter.detach().options());
    int64_t offset = 0;
    for (const size_t index : bucket.slots) {
      Slot& slot = slots[index];
      slot.bucket = number;
      slot.view = bucket.flat.as_strided(slot.parameter.sizes(), slot.parameter.strides(), offset);
      offset += slot.parameter.numel();
    }
  }

  Communicator& communicator;
  const int64_t bucket_bytes;
  std::vector<Slot> slots;
  std::vector<Bucket> buckets;
  std::unique_ptr<GradientWatch> watch;
  bool is_planned = false;
  size_t num_started = 0;  // buckets of this pass
  size_t num_overlapped = 0;
};

GradientReducer::GradientReducer(std::vector<Tensor> parameters, Communicator& communicator, int64_t bucket_bytes)
    : state_(std::make_unique<State>(communicator, bucket_bytes)) {
  std::erase_if(parameters, [](const Tensor& parameter) { return !parameter.requires_grad(); });
  for (const Tensor& parameter : parameters) {
    check_dense_memory(parameter);
    state_->slots.push_back({.parameter = parameter});
  }
  state_->watch = std::make_unique<GradientWatch>(std::move(parameters),
                                                  [state = state_.get()](size_t index) { state->on_complete(index); });
}

GradientReducer::~GradientReducer() = default;

void GradientReducer::arm() {
  state_->watch->arm();
  state_->num_started = 0;
  for (Bucket& bucket : state_->buckets) {
    bucket.missing = std::count_if(bucket.slots.begin(), bucket.slots.end(),
                                   [&](size_t index) { return state_->watch->has_gradient(index); });
  }
}

void GradientReducer::finish() {
  TORCH_INTERNAL_ASSERT(state_->watch->is_armed(), "[gradient reducer] finish() without arm()");
  const c10::NoGradGuard no_grad;
  state_->watch->disarm();
  if (!state_->is_planned) state_->plan();
  state_->num_overlapped = state_->num_started;
  while (state_->num_started < state_->buckets.size()) state_->start_next();
  for (Bucket& bucket : state_->buckets) bucket.reduction.wait();
}

int64_t GradientReducer::num_buckets() const { return static_cast<int64_t>(state_->buckets.size()); }
int64_t GradientReducer::num_overlapped() const { return static_cast<int64_t>(state_->num_overlapped); }

}  // namespace dalle::distributed

#include "torch_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "printable.h"
#include "torch_dtypes.h"

namespace dalle::storage {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t kMaxTensorDims = 16;

const PickleValue* argument(const PickleValue& call, size_t index) {
  return index < call.arguments->items.size() ? call.arguments->items[index] : nullptr;
}

bool is_parameter(const PickleValue& value) {
  const auto name = value.type_name();
  return name == "torch._utils._rebuild_parameter" || name == "torch._utils._rebuild_parameter_with_state";
}

/// A tuple of integers >= 0, at most kMaxTensorDims of them.
bool read_sizes(const PickleValue* value, std::vector<int64_t>& sizes) {
  if (value == nullptr || !value->is(Kind::kTuple) || value->items.size() > kMaxTensorDims) return false;
  for (const auto* item : value->items) {
    if (!item->is(Kind::kInteger) || item->integer < 0) return false;
    sizes.push_back(item->integer);
  }
  return true;
}

struct View {
  std::vector<int64_t> shape, strides;
  int64_t offset = 0;
};

/// Whether every element of the view is one of the storage's `available`, and it has no more elements than those.
bool fits(const View& view, int64_t available) {
  int64_t numel = 1, last = view.offset;
  const bool empty = std::find(view.shape.begin(), view.shape.end(), 0) != view.shape.end();
  for (size_t i = 0; i < view.shape.size(); ++i) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(numel, std::max<int64_t>(view.shape[i], 1), &numel)) return false;
    if (__builtin_mul_overflow(std::max<int64_t>(view.shape[i], 1) - 1, view.strides[i], &reach)) return false;
    if (__builtin_add_overflow(last, reach, &last)) return false;
  }
  if (empty) return view.offset <= available;
  return numel <= available && last < available;
}

}  // namespace

void TorchTensors::fail(const std::string& name, const std::string& expected, const std::string& got) const {
  throw CheckpointError(
      Problem{.place = str(place_, " (tensor ", printable(name), ")"), .expected = expected, .got = got});
}

bool TorchTensors::is_tensor(const PickleValue& value) {
  const auto name = value.type_name();
  return value.is(Kind::kObject) && (name.starts_with("torch._utils._rebuild_") || name.starts_with("torch._tensor."));
}

Tensor TorchTensors::make(const PickleValue& value, const std::string& name) {
  const PickleValue* call = &value;
  if (is_parameter(value)) call = argument(value, 0);  // then whether it requires a gradient, and hooks
  if (call == nullptr || !call->is(Kind::kObject) ||
      (call->type_name() != "torch._utils._rebuild_tensor_v2" && call->type_name() != "torch._utils._rebuild_tensor")) {
    fail(name, "a plain tensor (not sparse, quantised or of a class of its own)",
         call == nullptr ? "none" : describe(*call));
  }
  const PickleValue* id = argument(*call, 0);
  const PickleValue* offset = argument(*call, 1);
  View view;
  if (id == nullptr || offset == nullptr || !offset->is(Kind::kInteger) || offset->integer < 0 ||
      !read_sizes(argument(*call, 2), view.shape) || !read_sizes(argument(*call, 3), view.strides) ||
      view.shape.size() != view.strides.size()) {
    fail(name, str("a storage, an offset, and a shape and strides of at most ", kMaxTensorDims, " dimensions"),
         "other arguments");
  }
  view.offset = offset->integer;
  const Tensor data = storage(*id, name);
  if (!fits(view, data.numel())) {
    fail(name, str("a tensor within the ", data.numel(), " elements of its storage, with no more elements than those"),
         dalle::str("shape ", at::IntArrayRef(view.shape), ", strides ", at::IntArrayRef(view.strides), ", offset ",
                    view.offset));
  }
  return data.as_strided(view.shape, view.strides, view.offset);
}

// A storage's id is the tuple ("storage", class of its type, key, device, number of elements).
Tensor TorchTensors::storage(const PickleValue& id, const std::string& name) {
  const PickleValue* tuple = id.is(Kind::kPersistentId) ? id.items[0] : nullptr;
  if (tuple == nullptr || !tuple->is(Kind::kTuple) || tuple->items.size() < 5 || !tuple->items[1]->is(Kind::kGlobal) ||
      !tuple->items[2]->is(Kind::kText) || !tuple->items[4]->is(Kind::kInteger) || tuple->items[4]->integer < 0) {
    fail(name, "a storage's type, key and size", "other values");
  }
  const std::string& type = tuple->items[1]->text;
  const auto* known = std::find_if(std::begin(kTorchDtypes), std::end(kTorchDtypes),
                                   [&](const TorchDtype& entry) { return type == str("torch.", entry.storage); });
  if (known == std::end(kTorchDtypes)) {
    std::string names;
    for (const auto& entry : kTorchDtypes) names += str(names.empty() ? "" : ", ", entry.storage);
    fail(name, "one of " + names, printable(type));
  }
  uint64_t size = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(tuple->items[4]->integer), c10::elementSize(known->type), &size)) {
    fail(name, "a storage below 2^64 bytes", str(tuple->items[4]->integer, " elements"));
  }
  const Tensor bytes = storage_bytes_of(tuple->items[2]->text, size, name);
  if (known->type == at::kBool && bytes.gt(1).any().item<bool>()) fail(name, "bytes 0 and 1", "others");
  return bytes.view(known->type);
}

Tensor TorchTensors::storage_bytes_of(const std::string& key, uint64_t size, const std::string& name) {
  const ZipMember* member = archive_.find(str(prefix_, "data/", key));
  if (member == nullptr) fail(name, str("its data in the archive's member data/", key), "no such member");
  if (member->size != size) fail(name, str(size, " bytes of data"), str(member->size));
  Tensor& bytes = storages_[key];
  if (bytes.defined()) return bytes;
  bytes = at::empty({static_cast<int64_t>(size)}, at::TensorOptions(at::kByte));
  archive_.read(*member, std::span(static_cast<std::byte*>(bytes.data_ptr()), size));
  storage_bytes_ += size;
  return bytes;
}

}  // namespace dalle::storage

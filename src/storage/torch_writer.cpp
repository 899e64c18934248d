#include <ATen/ATen.h>

#include <algorithm>
#include <set>
#include <span>

#include "dalle/core/str.h"
#include "dalle/storage/torch_file.h"
#include "dalle/storage/zip_archive.h"
#include "torch_dtypes.h"

namespace dalle::storage {
namespace {

/// A pickle of protocol 2, the one that torch.load(weights_only=True) takes.
class PickleText {
 public:
  PickleText& raw(std::string_view opcodes) {
    bytes_ += opcodes;
    return *this;
  }
  PickleText& text(std::string_view value) {
    return raw("X").little_endian(static_cast<uint32_t>(value.size()), 4).raw(value);
  }
  PickleText& integer(int64_t value) {
    if (value <= INT32_MAX) return raw("J").little_endian(static_cast<uint64_t>(value), 4);
    return raw("\x8a\x08").little_endian(static_cast<uint64_t>(value), 8);
  }
  PickleText& integers(at::IntArrayRef values) {
    raw("(");
    for (const int64_t value : values) integer(value);
    return raw("t");
  }
  PickleText& little_endian(uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) bytes_ += static_cast<char>((value >> (8 * i)) & 0xFF);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

constexpr const char* kEmptyOrderedDict = "ccollections\nOrderedDict\n)R";

const char* storage_of(const NamedTensor& entry) {
  TORCH_CHECK_VALUE(entry.tensor.defined() && !entry.tensor.is_meta(), "[torch file] tensor '", entry.name,
                    "' has no data");
  for (const auto& known : kTorchDtypes) {
    if (known.type == entry.tensor.scalar_type()) return known.storage;
  }
  TORCH_CHECK_VALUE(false, "[torch file] tensor '", entry.name, "' has type ", entry.tensor.scalar_type(),
                    ", which is not supported");
}

/// torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, requires_grad = False, OrderedDict())
void add_tensor(PickleText& pickle, const NamedTensor& entry, const std::string& key) {
  std::vector<int64_t> strides(static_cast<size_t>(entry.tensor.dim()), 1);
  for (int64_t i = entry.tensor.dim() - 1; i > 0; --i) {
    strides[static_cast<size_t>(i - 1)] = strides[static_cast<size_t>(i)] * std::max<int64_t>(entry.tensor.size(i), 1);
  }
  pickle.text(entry.name).raw("ctorch._utils\n_rebuild_tensor_v2\n((").text("storage");
  pickle.raw(str("ctorch\n", storage_of(entry), "\n")).text(key).text("cpu").integer(entry.tensor.numel()).raw("tQ");
  pickle.integer(0).integers(entry.tensor.sizes()).integers(strides);
  pickle.raw("\x89").raw(kEmptyOrderedDict).raw("tR");
}

std::string state_dict_pickle(const std::vector<NamedTensor>& tensors) {
  PickleText pickle;
  pickle.raw("\x80\x02").raw(kEmptyOrderedDict).raw("(");
  std::set<std::string> names;
  for (size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK_VALUE(names.insert(tensors[i].name).second, "[torch file] two tensors '", tensors[i].name, "'");
    add_tensor(pickle, tensors[i], str(i));
  }
  return pickle.raw("u.").bytes();
}

}  // namespace

void write_torch_state_dict(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors) {
  const std::string pickle = state_dict_pickle(tensors);
  ZipWriter out(path);
  const std::string folder = "archive/";
  out.add(folder + "data.pkl", pickle);
  out.add(folder + "byteorder", "little");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor tensor = tensors[i].tensor.detach().to(at::kCPU).contiguous();
    out.add(str(folder, "data/", i),
            std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()));
  }
  out.add(folder + "version", "3\n");
  out.commit();
}

}  // namespace dalle::storage

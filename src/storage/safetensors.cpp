#include "dalle/storage/safetensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <span>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "input_file.h"
#include "json.h"

namespace dalle::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr size_t kMaxDims = 16;

struct DtypeName {
  at::ScalarType type;
  const char* name;
};
constexpr DtypeName kDtypes[] = {
    {at::kFloat, "F32"}, {at::kDouble, "F64"}, {at::kHalf, "F16"}, {at::kBFloat16, "BF16"}, {at::kLong, "I64"},
    {at::kInt, "I32"},   {at::kShort, "I16"},  {at::kChar, "I8"},  {at::kByte, "U8"},       {at::kBool, "BOOL"}};

const char* dtype_name(at::ScalarType type) {
  for (const auto& entry : kDtypes) {
    if (entry.type == type) return entry.name;
  }
  return nullptr;
}

// ------------------------------------------------------------------------------------------------------------- writing

std::string header_text(const SafetensorsFile& file, const std::string& place) {
  Json header = Json::object();
  if (!file.metadata.empty()) header["__metadata__"] = file.metadata;
  std::set<std::string> names;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : file.tensors) {
    TORCH_CHECK_VALUE(tensor.defined() && !tensor.is_meta(), "[safetensors] tensor '", name, "' has no data");
    TORCH_CHECK_VALUE(name != "__metadata__" && names.insert(name).second, "[safetensors] '", name,
                      "' cannot be a tensor's name: it is reserved or given twice");
    const char* dtype = dtype_name(tensor.scalar_type());
    TORCH_CHECK_VALUE(dtype != nullptr, "[safetensors] tensor '", name, "' has type ", tensor.scalar_type(),
                      ", which the format lacks");
    header[name] = {
        {"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, offset + tensor.nbytes()}}};
    offset += tensor.nbytes();
  }
  std::string text = dump_json(header, place);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

// ------------------------------------------------------------------------------------------------------------- reading

[[noreturn]] void fail(const std::string& place, const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{.place = place,
                                .expected = expected,
                                .got = got,
                                .hint = "the file is damaged or not a safetensors file; get it again"});
}

int64_t checked_dim(const Json& value, const std::string& place) {
  if (!value.is_number_unsigned() || !std::in_range<int64_t>(value.get<uint64_t>())) {
    fail(place, "a shape of integers >= 0", value.dump());
  }
  return value.get<int64_t>();
}

/// Bytes of a tensor of this shape; fails where they, or its strides, do not fit 63 bits.
uint64_t checked_bytes(const TensorInfo& info, const std::string& place) {
  int64_t extent = static_cast<int64_t>(c10::elementSize(info.dtype));  // with empty dimensions as 1, as strides count
  bool empty = false;
  for (const int64_t dim : info.shape) {
    empty = empty || dim == 0;
    if (__builtin_mul_overflow(extent, std::max<int64_t>(dim, 1), &extent)) {
      fail(place, "a size below 2^63 bytes", dalle::str("shape ", at::IntArrayRef(info.shape)));
    }
  }
  return empty ? 0 : static_cast<uint64_t>(extent);
}

TensorInfo parse_tensor(const std::string& name, const Json& entry, uint64_t data_size, const std::string& file) {
  const std::string place = str(file, " (tensor '", name, "')");
  TensorInfo info;
  info.name = name;
  const std::string dtype = require_string(entry, "dtype", place);
  const auto* known =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const auto& d) { return dtype == d.name; });
  if (known == std::end(kDtypes)) fail(place, "a type of F32 F64 F16 BF16 I64 I32 I16 I8 U8 BOOL", dtype);
  info.dtype = known->type;

  const Json& shape = require(entry, "shape", place);
  if (!shape.is_array() || shape.size() > kMaxDims)
    fail(place, str("a list of at most ", kMaxDims, " sizes"), shape.dump());
  for (const Json& dim : shape) info.shape.push_back(checked_dim(dim, place));

  const Json& offsets = require(entry, "data_offsets", place);
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    fail(place, "data_offsets of two integers >= 0", offsets.dump());
  }
  info.begin = offsets[0].get<uint64_t>();
  info.end = offsets[1].get<uint64_t>();
  if (info.begin > info.end || info.end > data_size) {
    fail(place, str("data_offsets within the ", data_size, " data bytes of the file"),
         str(info.begin, " to ", info.end));
  }
  const uint64_t bytes = checked_bytes(info, place);
  if (bytes != info.end - info.begin) {
    fail(place, dalle::str(bytes, " bytes for ", dtype, " of shape ", at::IntArrayRef(info.shape)),
         str(info.end - info.begin, " bytes"));
  }
  return info;
}

/// The tensors must cover the data section without holes, overlaps or a rest.
void check_coverage(const std::vector<TensorInfo>& tensors, uint64_t data_size, const std::string& file) {
  std::vector<const TensorInfo*> order;
  for (const auto& info : tensors) order.push_back(&info);
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
  uint64_t position = 0;
  for (const auto* info : order) {
    if (info->begin != position) {
      fail(str(file, " (tensor '", info->name, "')"), str("data from byte ", position, ", where the one before ends"),
           str("byte ", info->begin));
    }
    position = info->end;
  }
  if (position != data_size) fail(file, str(position, " data bytes"), str(data_size, " (trailing bytes)"));
}

uint64_t read_header_length(const InputFile& input, const std::string& place) {
  uint64_t length = 0;
  if (input.size() < sizeof(length)) fail(place, "at least 8 bytes", str(input.size(), " bytes"));
  input.read_at(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > kMaxHeaderBytes || length > input.size() - sizeof(length)) {
    fail(place, str("a header of at most ", std::min(kMaxHeaderBytes, input.size() - sizeof(length)), " bytes"),
         str(length, " bytes"));
  }
  return length;
}

SafetensorsHeader parse_header(const InputFile& input, const std::string& place) {
  std::string text(read_header_length(input, place), '\0');
  input.read_at(sizeof(uint64_t), std::as_writable_bytes(std::span(text)));
  SafetensorsHeader header;
  header.data_start = sizeof(uint64_t) + text.size();
  header.file_size = input.size();
  const uint64_t data_size = header.file_size - header.data_start;
  const Json json = parse_json(text, str(place, " (header)"));
  if (!json.is_object()) fail(place, "a JSON object as header", json.type_name());
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) fail(place, "an object as metadata", entry.type_name());
      for (const auto& item : entry.items()) {
        header.metadata[item.key()] = require_string(entry, item.key(), str(place, " (metadata)"));
      }
    } else {
      header.tensors.push_back(parse_tensor(name, entry, data_size, place));
    }
  }
  check_coverage(header.tensors, data_size, place);
  return header;
}

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const SafetensorsFile& file) {
  const std::string header = header_text(file, path.string());
  const uint64_t length = header.size();
  AtomicFile out(path);
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(header);
  for (const auto& [name, tensor] : file.tensors) {
    if (tensor.numel() == 0) continue;
    out.write(bytes_of(tensor.detach().to(at::kCPU).contiguous()));
  }
  out.commit();
}

SafetensorsHeader read_safetensors_header(const std::filesystem::path& path) {
  return parse_header(InputFile(path), path.string());
}

SafetensorsFile read_safetensors(const std::filesystem::path& path) {
  const InputFile input(path);
  SafetensorsHeader header = parse_header(input, path.string());
  SafetensorsFile file;
  file.metadata = std::move(header.metadata);
  for (const auto& info : header.tensors) {
    Tensor tensor = at::empty(info.shape, at::TensorOptions(info.dtype));
    if (tensor.numel() > 0) {
      const auto bytes = bytes_of(tensor);
      input.read_at(header.data_start + info.begin, bytes);
      if (info.dtype == at::kBool) {
        const auto bad =
            std::find_if(bytes.begin(), bytes.end(), [](std::byte b) { return std::to_integer<int>(b) > 1; });
        if (bad != bytes.end()) {
          fail(str(path.string(), " (tensor '", info.name, "')"), "bytes 0 and 1", str(std::to_integer<int>(*bad)));
        }
      }
    }
    file.tensors.push_back({info.name, std::move(tensor)});
  }
  return file;
}

}  // namespace dalle::storage

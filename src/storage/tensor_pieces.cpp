#include "dalle/storage/tensor_pieces.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <span>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/storage/safetensors.h"
#include "input_file.h"
#include "json.h"

namespace dalle::storage {
namespace {

constexpr const char* kPiecesKey = "dalle.pieces";

[[noreturn]] void refuse_pieces(const std::string& place, const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{.place = place,
                                .expected = expected,
                                .got = got,
                                .hint = "the checkpoint is damaged; use another one or copy it again"});
}

/// Product of the sizes; fails where it does not fit.
int64_t checked_numel(const std::vector<int64_t>& shape, const std::string& place) {
  int64_t numel = 1;
  for (const int64_t size : shape) {
    const bool fits = size >= 0 && (size == 0 || numel <= std::numeric_limits<int64_t>::max() / 16 / size);
    if (!fits) refuse_pieces(place, "sizes of a tensor", dalle::str(at::IntArrayRef(shape)));
    numel *= size;
  }
  return numel;
}

/// Part and number of parts of "KIND-PPPPP-of-NNNNN.safetensors", or {0, 0} for other names.
std::pair<int, int> part_of(const std::string& name, const std::string& kind) {
  int part = 0, num_parts = 0, length = 0;
  const std::string format = kind + "-%5d-of-%5d.safetensors%n";
  const int read = std::sscanf(name.c_str(), format.c_str(), &part, &num_parts, &length);
  const bool is_part = read == 2 && length == static_cast<int>(name.size());
  return is_part ? std::pair{part, num_parts} : std::pair{0, 0};
}

}  // namespace

std::string part_file_name(const std::string& kind, int64_t part, int64_t num_parts) {
  char numbers[48];
  std::snprintf(numbers, sizeof numbers, "-%05lld-of-%05lld.safetensors", static_cast<long long>(part + 1),
                static_cast<long long>(num_parts));
  return kind + numbers;
}

void write_pieces(const std::filesystem::path& path, const std::vector<TensorPiece>& pieces) {
  Json json = Json::object();
  SafetensorsFile file;
  for (const auto& piece : pieces) {
    file.tensors.push_back({piece.name, piece.values});
    json[piece.name] = {{"shape", piece.shape}, {"begin", piece.begin}, {"channels_last", piece.channels_last}};
  }
  file.metadata[kPiecesKey] = dump_json(json, path.string());
  write_safetensors(path, file);
}

TensorFiles::TensorFiles(const std::filesystem::path& folder, const Manifest& manifest, const std::string& kind)
    : folder_(folder), kind_(kind) {
  if (const auto* whole = manifest.find(kind + ".safetensors")) {
    add_file(*whole);
  } else {
    int expected = 0;
    for (const auto& entry : manifest.files) {
      const auto [part, num_parts] = part_of(entry.name, kind);
      if (num_parts == 0) continue;
      expected = num_parts;
      add_file(entry);
    }
    if (static_cast<size_t>(expected) != files_.size()) {
      refuse_pieces((folder / kManifestName).string(), str(expected, " parts of ", kind), str(files_.size()));
    }
  }
  for (auto& [name, entry] : tensors_) check(name, entry);
}

void TensorFiles::add_file(const ManifestEntry& file) {
  const size_t number = files_.size();
  files_.push_back(file);
  const std::string path = (folder_ / file.name).string();
  const SafetensorsHeader header = read_safetensors_header(path);
  const auto metadata = header.metadata.find(kPiecesKey);
  const bool is_part = metadata != header.metadata.end();
  const std::string place = str(path, " (", kPiecesKey, ")");
  const Json pieces = is_part ? parse_json(metadata->second, place) : Json::object();
  for (const auto& info : header.tensors) {
    Entry own{.shape = info.shape, .dtype = info.dtype, .chunks = {}};
    int64_t begin = 0;
    if (is_part) {
      const Json& piece = require_object(pieces, info.name, place);
      own.shape.clear();
      for (const Json& size : require(piece, "shape", place)) {
        if (!size.is_number_integer()) refuse_pieces(place, "a shape of integers", size.dump());
        own.shape.push_back(size.get<int64_t>());
      }
      begin = require_integer(piece, "begin", place);
      const Json& order = require(piece, "channels_last", place);
      own.channels_last = order.is_boolean() && order.get<bool>();
    }
    const auto numel = static_cast<int64_t>((info.end - info.begin) / c10::elementSize(info.dtype));
    if (begin < 0 || begin > std::numeric_limits<int64_t>::max() - numel) {
      refuse_pieces(str(place, " '", info.name, "'"), "a begin >= 0", str(begin));
    }
    Entry& entry = tensors_.try_emplace(info.name, own).first->second;
    if (entry.shape != own.shape || entry.dtype != own.dtype || entry.channels_last != own.channels_last) {
      refuse_pieces(str(place, " '", info.name, "'"),
                    dalle::str(entry.dtype, " of shape ", at::IntArrayRef(entry.shape), ", as another part has"),
                    dalle::str(own.dtype, " of shape ", at::IntArrayRef(own.shape)));
    }
    entry.chunks.push_back({number, header.data_start + info.begin, begin, begin + numel});
  }
}

void TensorFiles::check(const std::string& name, Entry& entry) const {
  const std::string place = str((folder_ / kind_).string(), " '", name, "'");
  const int64_t numel = checked_numel(entry.shape, place);
  std::sort(entry.chunks.begin(), entry.chunks.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  int64_t next = 0;
  for (const auto& chunk : entry.chunks) {
    if (chunk.begin != next) refuse_pieces(place, str("numbers from ", next), str("from ", chunk.begin));
    next = chunk.end;
  }
  if (next != numel) refuse_pieces(place, str(numel, " numbers"), str(next));
  if (entry.channels_last && entry.shape.size() != 4) {
    refuse_pieces(place, "4 sizes of a tensor in the order of NHWC", str(entry.shape.size()));
  }
}

std::vector<std::string> TensorFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

const std::vector<int64_t>* TensorFiles::shape(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.shape;
}

const TensorFiles::Entry& TensorFiles::entry_of(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw CheckpointError(Problem{.place = (folder_ / kind_).string(), .expected = str("'", name, "'"), .got = "none"});
  }
  return found->second;
}

Tensor TensorFiles::read_stored(const Entry& entry, int64_t begin, int64_t end) const {
  Tensor values = at::empty({end - begin}, at::TensorOptions(entry.dtype));
  const auto size = static_cast<int64_t>(values.element_size());
  for (const auto& chunk : entry.chunks) {
    const int64_t first = std::max(begin, chunk.begin), last = std::min(end, chunk.end);
    if (first >= last) continue;
    auto* target = static_cast<std::byte*>(values.mutable_data_ptr()) + (first - begin) * size;
    InputFile(folder_ / files_[chunk.file].name)
        .read_at(chunk.position + static_cast<uint64_t>((first - chunk.begin) * size),
                 std::span(target, static_cast<size_t>((last - first) * size)));
  }
  return values;
}

Tensor TensorFiles::read(const std::string& name) const {
  const Entry& entry = entry_of(name);
  const int64_t numel = entry.chunks.back().end;
  const Tensor values = read_stored(entry, 0, numel);
  if (!entry.channels_last) return values.view(entry.shape);
  const auto& s = entry.shape;
  return values.view({s[0], s[2], s[3], s[1]}).permute({0, 3, 1, 2}).contiguous();
}

Tensor TensorFiles::read_range(const std::string& name, int64_t begin, int64_t end, bool channels_last) const {
  const Entry& entry = entry_of(name);
  TORCH_CHECK_VALUE(0 <= begin && begin <= end && end <= entry.chunks.back().end, "[tensor files] no range ", begin,
                    " to ", end, " in '", name, "'");
  if (entry.channels_last == channels_last) return read_stored(entry, begin, end);
  const Tensor whole = read(name);
  const Tensor ordered = channels_last ? whole.permute({0, 2, 3, 1}).contiguous() : whole;
  return ordered.flatten().slice(0, begin, end).clone();
}

std::vector<NamedTensor> TensorFiles::read_all() const {
  std::vector<NamedTensor> all;
  for (const auto& [name, entry] : tensors_) all.push_back({name, read(name)});
  return all;
}

void TensorFiles::verify() const {
  for (const auto& file : files_) verify_checksum(folder_, file);
}

}  // namespace dalle::storage

#include "dalle/storage/tensor_pieces.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <numeric>
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

/// The same order has one form: none where it is the shape's own.
DimensionOrder canonical(DimensionOrder order) {
  return std::is_sorted(order.begin(), order.end()) ? DimensionOrder() : order;
}

DimensionOrder inverse(const DimensionOrder& order) {
  DimensionOrder inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  return inverse;
}

std::vector<int64_t> integers_of(const Json& list, const std::string& what, const std::string& place) {
  std::vector<int64_t> integers;
  for (const Json& each : list) {
    if (!each.is_number_integer()) refuse_pieces(place, what + " of integers", each.dump());
    integers.push_back(each.get<int64_t>());
  }
  return integers;
}

/// Of files before there was "order": true is NHWC memory.
DimensionOrder order_of(const Json& piece, size_t num_dimensions, const std::string& place) {
  DimensionOrder order;
  if (piece.contains("order")) {
    order = integers_of(piece["order"], "an order", place);
  } else if (const Json& is_last = require(piece, "channels_last", place);
             is_last.is_boolean() && is_last.get<bool>()) {
    order = {0, 2, 3, 1};
  }
  DimensionOrder sorted = order, all(order.empty() ? 0 : num_dimensions);
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  if (sorted != all) {
    refuse_pieces(place, str("an order of the ", num_dimensions, " dimensions"), dalle::str(at::IntArrayRef(order)));
  }
  return canonical(order);
}

/// Of files before there were "ranges": one stretch from "begin" on.
std::vector<NumberRange> ranges_of(const Json& piece, int64_t numel, const std::string& place) {
  std::vector<NumberRange> ranges;
  if (piece.contains("ranges")) {
    for (const Json& each : piece["ranges"]) {
      const auto ends = integers_of(each, "a range", place);
      if (ends.size() != 2) refuse_pieces(place, "a range of two integers", each.dump());
      ranges.push_back({ends[0], ends[1]});
    }
  } else {
    const int64_t begin = require_integer(piece, "begin", place);
    const bool fits = begin >= 0 && begin <= std::numeric_limits<int64_t>::max() - numel;
    if (!fits) refuse_pieces(place, "a begin >= 0", str(begin));
    ranges.push_back({begin, begin + numel});
  }
  if (ranges.empty()) refuse_pieces(place, "a range at least", "none");
  int64_t missing = numel;
  for (const auto& [begin, end] : ranges) {
    const bool fits = begin >= 0 && begin <= end && end - begin <= missing;
    if (!fits) refuse_pieces(place, str("ranges of ", numel, " numbers"), str(begin, " to ", end));
    missing -= end - begin;
  }
  if (missing != 0) refuse_pieces(place, str("ranges of ", numel, " numbers"), str(numel - missing));
  return ranges;
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

Tensor numbers_of(const Tensor& whole, const std::vector<NumberRange>& ranges, const DimensionOrder& order) {
  const Tensor numbers = (order.empty() ? whole : whole.permute(order)).flatten();
  std::vector<Tensor> stretches{numbers.slice(0, 0, 0)};
  for (const auto& [begin, end] : ranges) stretches.push_back(numbers.slice(0, begin, end));
  return at::cat(stretches);
}

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
    Json ranges = Json::array();
    for (const auto& [begin, end] : piece.ranges) ranges.push_back({begin, end});
    if (piece.ranges.empty()) ranges.push_back({0, piece.values.numel()});
    json[piece.name] = {{"shape", piece.shape}, {"ranges", ranges}, {"order", piece.order}};
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
    const std::string piece_place = str(place, " '", info.name, "'");
    const auto numel = static_cast<int64_t>((info.end - info.begin) / c10::elementSize(info.dtype));
    Entry own{.shape = info.shape, .dtype = info.dtype};
    std::vector<NumberRange> ranges{{0, numel}};
    if (is_part) {
      const Json& piece = require_object(pieces, info.name, place);
      own.shape = integers_of(require(piece, "shape", place), "a shape", place);
      own.order = order_of(piece, own.shape.size(), piece_place);
      ranges = ranges_of(piece, numel, piece_place);
    }
    add_piece(info.name, own, ranges, {.file = number, .position = header.data_start + info.begin}, piece_place);
  }
}

/// `chunk`: the file, and where the piece begins in it.
void TensorFiles::add_piece(const std::string& name, const Entry& own, const std::vector<NumberRange>& ranges,
                            Chunk chunk, const std::string& place) {
  Entry& entry = tensors_.try_emplace(name, own).first->second;
  if (entry.shape != own.shape || entry.dtype != own.dtype || entry.order != own.order) {
    refuse_pieces(place, dalle::str(entry.dtype, " of shape ", at::IntArrayRef(entry.shape), ", as another part has"),
                  dalle::str(own.dtype, " of shape ", at::IntArrayRef(own.shape)));
  }
  for (const auto& [begin, end] : ranges) {
    chunk.begin = begin;
    chunk.end = end;
    entry.chunks.push_back(chunk);
    chunk.position += static_cast<uint64_t>(end - begin) * c10::elementSize(own.dtype);
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

Tensor TensorFiles::read_stored(const Entry& entry, const std::vector<NumberRange>& ranges) const {
  Tensor values = at::empty({total_size(ranges)}, at::TensorOptions(entry.dtype));
  const auto size = static_cast<int64_t>(values.element_size());
  auto* target = static_cast<std::byte*>(values.mutable_data_ptr());
  for (const auto& [begin, end] : ranges) {
    for (const auto& chunk : entry.chunks) {
      const int64_t first = std::max(begin, chunk.begin), last = std::min(end, chunk.end);
      if (first >= last) continue;
      InputFile(folder_ / files_[chunk.file].name)
          .read_at(chunk.position + static_cast<uint64_t>((first - chunk.begin) * size),
                   std::span(target + (first - begin) * size, static_cast<size_t>((last - first) * size)));
    }
    target += (end - begin) * size;
  }
  return values;
}

Tensor TensorFiles::read(const std::string& name) const {
  const Entry& entry = entry_of(name);
  const Tensor values = read_stored(entry, {{0, entry.chunks.back().end}});
  if (entry.order.empty()) return values.view(entry.shape);
  std::vector<int64_t> sizes;
  for (const int64_t dimension : entry.order) sizes.push_back(entry.shape[static_cast<size_t>(dimension)]);
  return values.view(sizes).permute(inverse(entry.order)).contiguous();
}

Tensor TensorFiles::read_ranges(const std::string& name, const std::vector<NumberRange>& ranges,
                                const DimensionOrder& order) const {
  const Entry& entry = entry_of(name);
  for (const auto& [begin, end] : ranges) {
    TORCH_CHECK_VALUE(0 <= begin && begin <= end && end <= entry.chunks.back().end, "[tensor files] no range ", begin,
                      " to ", end, " in '", name, "'");
  }
  return entry.order == canonical(order) ? read_stored(entry, ranges) : numbers_of(read(name), ranges, order);
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

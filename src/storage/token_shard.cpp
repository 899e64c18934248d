#include "dalle/storage/token_shard.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "dalle/core/error.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "input_file.h"
#include "token_layout.h"

namespace dalle::storage {
namespace {

[[noreturn]] void fail_shard(const std::filesystem::path& path, const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{.place = path.string(),
                                .expected = expected,
                                .got = got,
                                .hint = "the token shard is damaged; continue its encode-images run with --resume, "
                                        "which makes it again, or copy it again"});
}

template <class T>
std::vector<T> read_array(const InputFile& file, uint64_t offset, size_t count) {
  std::vector<T> values(count);
  file.read_at(offset, std::as_writable_bytes(std::span(values)));
  return values;
}

std::string read_piece(const InputFile& file, uint64_t offset, uint64_t bytes) {
  std::string text(bytes, '\0');
  file.read_at(offset, std::as_writable_bytes(std::span(text)));
  return text;
}

/// The digits of a digest as they are printed.
std::string digest_hex(std::string_view bytes) {
  std::string hex;
  for (const unsigned char byte : bytes) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

template <class Code>
void read_checked_codes(const InputFile& file, const std::filesystem::path& path, uint64_t offset, int64_t vocab_size,
                        std::span<int64_t> codes) {
  const auto stored = read_array<Code>(file, offset, codes.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    if (static_cast<int64_t>(stored[i]) >= vocab_size) {
      fail_shard(path, str("codes below vocab_size ", vocab_size), str(stored[i]));
    }
    codes[i] = static_cast<int64_t>(stored[i]);
  }
}

/// Two neighbours of an offset array, as begin and end of a piece of a section of `limit` units.
std::pair<uint64_t, uint64_t> read_bounds(const InputFile& file, const std::filesystem::path& path, const char* name,
                                          uint64_t offset, uint64_t limit) {
  const auto bounds = read_array<uint64_t>(file, offset, 2);
  if (bounds[0] > bounds[1] || bounds[1] > limit) {
    fail_shard(path, str(name, " that rise to at most ", limit), str(bounds[0], ", ", bounds[1]));
  }
  return {bounds[0], bounds[1]};
}

}  // namespace

TokenShardReader::TokenShardReader(std::filesystem::path path) : path_(std::move(path)) {
  const InputFile file(path_);
  const std::string prefix = read_piece(file, 0, std::min(file.size(), kTokenPrefixBytes));
  if (prefix.size() < kTokenPrefixBytes || !prefix.starts_with(kTokenMagic)) {
    fail_shard(path_, str("a token shard, which begins with ", kTokenMagic),
               str(file.size(), " bytes of another kind"));
  }
  uint64_t length = 0;
  std::memcpy(&length, prefix.data() + 8, 8);
  if (length > kMaxTokenHeaderBytes || length > file.size() - kTokenPrefixBytes) {
    fail_shard(path_, "a header within the file", str("a header of ", length, " bytes in a file of ", file.size()));
  }
  header_ = parse_token_header(read_piece(file, kTokenPrefixBytes, length), path_.string());
  header_.checksum = digest_hex(std::string_view(prefix).substr(16));
  header_.file_bytes = file.size();
  layout_ = token_layout(header_, path_.string());
  data_start_ = kTokenPrefixBytes + length;
  if (file.size() - data_start_ != layout_.end) {
    fail_shard(path_, str(data_start_ + layout_.end, " bytes, as its header says"), str(file.size(), " bytes"));
  }
}

void TokenShardReader::check_sample(int64_t sample) const {
  TORCH_CHECK_VALUE(sample >= 0 && sample < size(), "[token shard] sample ", sample, " is not in [0, ", size(), ")");
}

void TokenShardReader::read_codes(const InputFile& file, int64_t sample, int64_t crop, std::span<int64_t> codes) const {
  const auto& info = header_.info;
  check_sample(sample);
  TORCH_CHECK_VALUE(crop >= 0 && crop < info.num_crops, "[token shard] crop ", crop, " is not in [0, ", info.num_crops,
                    ")");
  TORCH_CHECK_VALUE(static_cast<int64_t>(codes.size()) == info.tokens_per_crop(), "[token shard] room for ",
                    info.tokens_per_crop(), " codes expected, got ", codes.size());
  const auto record = static_cast<uint64_t>(sample * info.num_crops + crop);
  const uint64_t offset =
      data_start_ + layout_.tokens + record * static_cast<uint64_t>(info.tokens_per_crop() * info.token_bytes());
  info.token_bytes() == 2 ? read_checked_codes<uint16_t>(file, path_, offset, info.vocab_size, codes)
                          : read_checked_codes<uint32_t>(file, path_, offset, info.vocab_size, codes);
}

int64_t TokenShardReader::index(const InputFile& file, int64_t sample) const {
  check_sample(sample);
  const auto at = data_start_ + layout_.indices + 8 * static_cast<uint64_t>(sample);
  const auto value = static_cast<int64_t>(read_array<uint64_t>(file, at, 1)[0]);
  if (value < header_.first_index || value >= header_.end_index) {
    fail_shard(path_, str("indices from ", header_.first_index, " to ", header_.end_index - 1), str(value));
  }
  return value;
}

std::string TokenShardReader::key(const InputFile& file, int64_t sample) const {
  check_sample(sample);
  const auto [begin, end] =
      read_bounds(file, path_, "key offsets", data_start_ + layout_.key_offsets + 8 * static_cast<uint64_t>(sample),
                  static_cast<uint64_t>(header_.key_bytes));
  if (end - begin > kMaxSampleTextBytes) fail_shard(path_, "a key below 1 GiB", str(end - begin, " bytes"));
  return read_piece(file, data_start_ + layout_.keys + begin, end - begin);
}

std::vector<std::string> TokenShardReader::captions(const InputFile& file, int64_t sample) const {
  check_sample(sample);
  const auto [first, last] = read_bounds(file, path_, "caption starts",
                                         data_start_ + layout_.caption_starts + 8 * static_cast<uint64_t>(sample),
                                         static_cast<uint64_t>(header_.num_captions));
  if (last - first > kMaxSampleCaptions) fail_shard(path_, "fewer captions of a sample", str(last - first));
  const auto offsets = read_array<uint64_t>(file, data_start_ + layout_.caption_offsets + 8 * first, last - first + 1);
  if (!std::is_sorted(offsets.begin(), offsets.end()) ||
      offsets.back() > static_cast<uint64_t>(header_.caption_bytes) ||
      offsets.back() - offsets.front() > kMaxSampleTextBytes) {
    fail_shard(path_, str("caption offsets that rise to at most ", header_.caption_bytes),
               str("others at sample ", sample));
  }
  const std::string text =
      read_piece(file, data_start_ + layout_.captions + offsets.front(), offsets.back() - offsets.front());
  std::vector<std::string> captions;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    captions.push_back(text.substr(offsets[i] - offsets.front(), offsets[i + 1] - offsets[i]));
  }
  return captions;
}

void TokenShardReader::read_codes(int64_t sample, int64_t crop, std::span<int64_t> codes) const {
  read_codes(InputFile(path_), sample, crop, codes);
}

int64_t TokenShardReader::index(int64_t sample) const { return index(InputFile(path_), sample); }
std::string TokenShardReader::key(int64_t sample) const { return key(InputFile(path_), sample); }
std::vector<std::string> TokenShardReader::captions(int64_t sample) const { return captions(InputFile(path_), sample); }

void TokenShardReader::verify() const {
  const InputFile file(path_);
  Hasher hasher;
  constexpr uint64_t kPiece = 4 << 20;
  for (uint64_t offset = kTokenPrefixBytes; offset < file.size(); offset += kPiece) {
    hasher.update(read_piece(file, offset, std::min(kPiece, file.size() - offset)));
  }
  if (hasher.hex() != header_.checksum) fail_shard(path_, "checksum " + header_.checksum, hasher.hex());
  // A whole file of a faulty writer is damage too: every number is looked at once.
  std::vector<int64_t> codes;
  if (size() > 0) codes.resize(static_cast<size_t>(header_.info.tokens_per_crop()));  // the file holds as many
  int64_t before = -1;
  for (int64_t sample = 0; sample < size(); ++sample) {
    const int64_t own = index(file, sample);
    if (own <= before) fail_shard(path_, "rising indices", str(before, ", ", own));
    before = own;
    key(file, sample);
    captions(file, sample);
    for (int64_t crop = 0; crop < header_.info.num_crops; ++crop) read_codes(file, sample, crop, codes);
  }
}

}  // namespace dalle::storage

// A token shard: image tokens of some samples of a data set, several crops each, with keys and captions
// (docs/token_shards.md). Records have a fixed size, so any sample and crop is one read at a computed place. No position
// is stored in the file: all follow from the header's counts, and the file's size must be exactly their sum.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace dalle::storage {

inline constexpr int64_t kTokenShardVersion = 1;

/// What all shards of a set share: whose tokens they are, their shape, and how the pictures were prepared.
struct TokenShardInfo {
  std::string dvae;  // identity of the weights that encoded
  int64_t picture_size = 0;
  int64_t grid_size = 0;
  int64_t vocab_size = 0;
  int64_t num_crops = 0;
  int64_t seed = 0;
  int64_t dataset_size = 0;                     // samples of the whole data set, unusable ones included
  std::map<std::string, std::string> settings;  // augmentation, precision, ...: for people, and for comparing

  int64_t tokens_per_crop() const { return grid_size * grid_size; }
  /// 2 where every code fits 16 bits, else 4.
  int64_t token_bytes() const { return vocab_size <= 65536 ? 2 : 4; }
  bool operator==(const TokenShardInfo&) const = default;
};

/// The first difference between two sets, "grid_size is 8 where 16 was expected"; "" where there is none.
std::string first_difference(const TokenShardInfo& got, const TokenShardInfo& expected);

struct TokenShardHeader {
  TokenShardInfo info;
  int64_t first_index = 0;  // the shard covers samples first_index .. end_index - 1 of the data set,
  int64_t end_index = 0;    // of which num_samples were usable
  int64_t num_samples = 0;
  int64_t num_captions = 0;
  int64_t key_bytes = 0;
  int64_t caption_bytes = 0;
  std::string checksum;     // XXH3-128 of all that follows it in the file, 32 hex digits
  uint64_t file_bytes = 0;  // size of the file; filled by readers and by write()
};

/// Positions of a shard's sections in the file's order, in bytes from the first section. N samples, M captions.
struct TokenLayout {
  uint64_t tokens = 0;           // u16 or u32 [N, num_crops, grid_size, grid_size], then zeros to a multiple of 8
  uint64_t indices = 0;          // u64 [N]
  uint64_t key_offsets = 0;      // u64 [N + 1]
  uint64_t caption_starts = 0;   // u64 [N + 1]
  uint64_t caption_offsets = 0;  // u64 [M + 1]
  uint64_t keys = 0;             // UTF-8
  uint64_t captions = 0;         // UTF-8
  uint64_t end = 0;
};

struct TokenSample {
  int64_t index = 0;  // in the data set
  std::string key;
  std::vector<std::string> captions;
  std::span<const int64_t> codes;  // [num_crops, grid_size, grid_size]
};

/// Gathers the samples of one shard in memory.
class TokenShardWriter {
 public:
  /// Throws c10::ValueError for sizes below 1 or above what the format holds.
  TokenShardWriter(TokenShardInfo info, int64_t first_index, int64_t end_index);

  /// Throws c10::ValueError where indices do not rise within the shard's range, codes are not in [0, vocab_size) or
  /// their number is wrong.
  void add(const TokenSample& sample);

  /// Writes the file beside its place and renames it. Throws FileError.
  TokenShardHeader write(const std::filesystem::path& path) const;

 private:
  TokenShardHeader header_;
  std::string tokens_;  // packed as in the file
  std::vector<uint64_t> indices_;
  std::vector<uint64_t> key_offsets_{0};
  std::vector<uint64_t> caption_starts_{0};
  std::vector<uint64_t> caption_offsets_{0};
  std::string keys_;
  std::string captions_;
};

class InputFile;

/// Random access to a shard by many threads at once. The file is opened for each read and nothing but the header is
/// kept, so a set may have any number of shards. The file is taken for hostile: every number read from it is checked
/// before it is used, and damage is a CheckpointError (never a DataError, which loaders take for one bad sample).
class TokenShardReader {
 public:
  /// Reads and checks the header and the file's size. Throws FileError and CheckpointError.
  explicit TokenShardReader(std::filesystem::path path);

  const TokenShardHeader& header() const { return header_; }
  const std::filesystem::path& path() const { return path_; }
  int64_t size() const { return header_.num_samples; }

  /// Codes of one crop, [grid_size * grid_size]. Throws CheckpointError for a code outside the vocabulary.
  void read_codes(int64_t sample, int64_t crop, std::span<int64_t> codes) const;
  /// Index of a sample in the data set.
  int64_t index(int64_t sample) const;
  std::string key(int64_t sample) const;
  std::vector<std::string> captions(int64_t sample) const;

  /// Reads everything: checksum, indices, offsets, codes. Throws CheckpointError.
  void verify() const;

 private:
  void check_sample(int64_t sample) const;
  void read_codes(const InputFile& file, int64_t sample, int64_t crop, std::span<int64_t> codes) const;
  int64_t index(const InputFile& file, int64_t sample) const;
  std::string key(const InputFile& file, int64_t sample) const;
  std::vector<std::string> captions(const InputFile& file, int64_t sample) const;

  std::filesystem::path path_;
  TokenShardHeader header_;
  TokenLayout layout_;
  uint64_t data_start_ = 0;  // of the first section in the file
};

}  // namespace dalle::storage

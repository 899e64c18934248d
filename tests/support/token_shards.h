// A small token shard whose content says where it comes from: the same one that scripts/golden/token_shard.py writes.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "dalle/core/str.h"
#include "dalle/storage/token_set.h"

namespace dalle::testing {

/// 2x2 tokens, three crops. A vocabulary above 65,536 gives 32-bit codes.
inline storage::TokenShardInfo token_info(int64_t dataset_size, int64_t vocab_size = 1000) {
  return {.dvae = "0123456789abcdef0123456789abcdef",
          .picture_size = 16,
          .grid_size = 2,
          .vocab_size = vocab_size,
          .num_crops = 3,
          .seed = 7,
          .dataset_size = dataset_size,
          .settings = {{"augmentation", "stage2"}, {"precision", "f32"}}};
}

/// Code at a position of a crop of the sample with this index: every one of a data set is another, up to vocab_size.
inline int64_t token_code(int64_t index, int64_t crop, int64_t position, int64_t vocab_size = 1000) {
  return (vocab_size - 1 - (100 * index + 10 * crop + position) % vocab_size) % vocab_size;
}

inline std::vector<int64_t> token_codes(int64_t index, int64_t crop, int64_t vocab_size = 1000) {
  std::vector<int64_t> codes;
  for (int64_t position = 0; position < 4; ++position) codes.push_back(token_code(index, crop, position, vocab_size));
  return codes;
}

/// One caption for index 0, two for 1, three for 2, and so on; the first of index 1 has no letter in it.
inline std::vector<std::string> token_captions(int64_t index) {
  std::vector<std::string> captions;
  for (int64_t n = 0; n <= index; ++n)
    captions.push_back(index == 1 && n == 0 ? "" : str("caption ", n, " of ", index, " \u00e9"));
  return captions;
}

inline std::string token_key(int64_t index) { return str("folder/key-", index); }

/// Samples first .. end - 1 but those in `without`.
inline storage::TokenShardWriter token_writer(const storage::TokenShardInfo& info, int64_t first, int64_t end,
                                              const std::vector<int64_t>& without = {}) {
  storage::TokenShardWriter writer(info, first, end);
  for (int64_t index = first; index < end; ++index) {
    if (std::find(without.begin(), without.end(), index) != without.end()) continue;
    std::vector<int64_t> codes;
    for (int64_t crop = 0; crop < info.num_crops; ++crop) {
      const auto more = token_codes(index, crop, info.vocab_size);
      codes.insert(codes.end(), more.begin(), more.end());
    }
    writer.add({index, token_key(index), token_captions(index), codes});
  }
  return writer;
}

/// A finished set of two shards over six samples, of which number 4 was no picture.
inline storage::TokenSet write_token_set(const std::filesystem::path& folder, const storage::TokenShardInfo& info) {
  std::filesystem::create_directories(folder);
  const std::vector<storage::TokenShardHeader> headers{
      token_writer(info, 0, 4).write(folder / storage::token_shard_name(0)),
      token_writer(info, 4, 6, {4}).write(folder / storage::token_shard_name(1))};
  const auto set = storage::describe_token_set(headers, "runs/dvae", 12);
  storage::write_token_set(folder, set);
  return set;
}

}  // namespace dalle::testing

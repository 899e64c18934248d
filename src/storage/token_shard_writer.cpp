#include <c10/util/Exception.h>

#include <array>
#include <bit>
#include <cstring>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "dalle/storage/token_shard.h"
#include "token_layout.h"

namespace dalle::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "token shards are little-endian");

std::string_view array_bytes(const std::vector<uint64_t>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), 8 * numbers.size()};
}

/// The digest's 16 bytes, in the order in which its digits are printed.
std::string digest_bytes(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

template <class Code>
void append_codes(std::span<const int64_t> codes, std::string& out) {
  const size_t start = out.size();
  out.resize(start + codes.size() * sizeof(Code));
  for (size_t i = 0; i < codes.size(); ++i) {
    const auto code = static_cast<Code>(codes[i]);
    std::memcpy(out.data() + start + i * sizeof(Code), &code, sizeof(Code));
  }
}

}  // namespace

TokenShardWriter::TokenShardWriter(TokenShardInfo info, int64_t first_index, int64_t end_index)
    : header_{.info = std::move(info), .first_index = first_index, .end_index = end_index} {
  try {
    token_layout(header_, "token shard");
  } catch (const CheckpointError& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

void TokenShardWriter::add(const TokenSample& sample) {
  const auto& info = header_.info;
  TORCH_CHECK_VALUE(
      sample.index >= (indices_.empty() ? header_.first_index : static_cast<int64_t>(indices_.back()) + 1) &&
          sample.index < header_.end_index,
      "[token shard] index ", sample.index, " does not rise within ", header_.first_index, " .. ",
      header_.end_index - 1);
  TORCH_CHECK_VALUE(static_cast<int64_t>(sample.codes.size()) == info.num_crops * info.tokens_per_crop(),
                    "[token shard] expected ", info.num_crops * info.tokens_per_crop(), " codes, got ",
                    sample.codes.size());
  TORCH_CHECK_VALUE(static_cast<int64_t>(sample.captions.size()) <= kMaxSampleCaptions, "[token shard] ",
                    sample.captions.size(), " captions of one sample");
  size_t text_bytes = sample.key.size();
  for (const auto& caption : sample.captions) text_bytes += caption.size();
  TORCH_CHECK_VALUE(text_bytes <= kMaxSampleTextBytes, "[token shard] ", text_bytes, " bytes of text of one sample");
  for (const int64_t code : sample.codes) {
    TORCH_CHECK_VALUE(code >= 0 && code < info.vocab_size, "[token shard] code ", code, " is not in [0, ",
                      info.vocab_size, ")");
  }
  info.token_bytes() == 2 ? append_codes<uint16_t>(sample.codes, tokens_)
                          : append_codes<uint32_t>(sample.codes, tokens_);
  indices_.push_back(static_cast<uint64_t>(sample.index));
  keys_ += sample.key;
  key_offsets_.push_back(keys_.size());
  for (const auto& caption : sample.captions) {
    captions_ += caption;
    caption_offsets_.push_back(captions_.size());
  }
  caption_starts_.push_back(caption_offsets_.size() - 1);
}

TokenShardHeader TokenShardWriter::write(const std::filesystem::path& path) const {
  TokenShardHeader header = header_;
  header.num_samples = static_cast<int64_t>(indices_.size());
  header.num_captions = static_cast<int64_t>(caption_offsets_.size()) - 1;
  header.key_bytes = static_cast<int64_t>(keys_.size());
  header.caption_bytes = static_cast<int64_t>(captions_.size());
  const TokenLayout layout = token_layout(header, path.string());
  const std::string text = token_header_text(header, path.string());
  const std::string padding(layout.indices - tokens_.size(), '\0');
  const std::array<std::string_view, 9> parts{text,
                                              tokens_,
                                              padding,
                                              array_bytes(indices_),
                                              array_bytes(key_offsets_),
                                              array_bytes(caption_starts_),
                                              array_bytes(caption_offsets_),
                                              keys_,
                                              captions_};
  Hasher hasher;
  for (const auto part : parts) hasher.update(part);
  header.checksum = hasher.hex();
  header.file_bytes = kTokenPrefixBytes + text.size() + layout.end;
  const uint64_t length = text.size();
  AtomicFile file(path);
  file.write(std::string_view(kTokenMagic));
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(digest_bytes(header.checksum));
  for (const auto part : parts) file.write(part);
  file.commit();
  return header;
}

}  // namespace dalle::storage

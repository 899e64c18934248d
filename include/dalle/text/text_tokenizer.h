// The tokenizers that a model can have, behind one face: what reads a caption is said by the tokenizer's file, which a
// checkpoint carries.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dalle/core/enum_names.h"
#include "dalle/core/random.h"
#include "dalle/text/clip_bpe.h"
#include "dalle/text/tokenizer.h"

namespace dalle::text {

enum class TokenizerKind { kSentencePiece, kClipBpe };

/// Immutable and cheap to copy; may be used from many threads. Errors are those of text::Tokenizer and text::ClipBpe.
class TextTokenizer {
 public:
  TextTokenizer(Tokenizer tokenizer) : held_(std::move(tokenizer)) {}  // NOLINT: any tokenizer will do
  TextTokenizer(ClipBpe tokenizer) : held_(std::move(tokenizer)) {}    // NOLINT

  /// A SentencePiece model or a CLIP vocabulary, by its first bytes. Throws ConfigError where the file does not exist.
  static TextTokenizer load(const std::filesystem::path& path);
  static TextTokenizer from_bytes(std::string file);

  TokenizerKind kind() const;
  /// The caption as its pieces spell it.
  std::string normalize(std::string_view caption) const;
  std::vector<int64_t> encode(std::string_view caption) const;
  /// With BPE dropout, a pure function of caption, dropout and key.
  std::vector<int64_t> encode(std::string_view caption, double dropout, RandomKey key) const;
  std::string decode(std::span<const int64_t> ids) const;
  /// Pieces, without start and end of text.
  int64_t vocab_size() const;
  std::string piece(int64_t id) const;
  /// The file, byte for byte.
  const std::string& model_bytes() const;
  std::string identity() const;

 private:
  std::variant<Tokenizer, ClipBpe> held_;
};

}  // namespace dalle::text

namespace dalle {
template <>
struct EnumNames<text::TokenizerKind> {
  static constexpr EnumName<text::TokenizerKind> values[] = {{text::TokenizerKind::kSentencePiece, "sentencepiece"},
                                                             {text::TokenizerKind::kClipBpe, "clip_bpe"}};
};
}  // namespace dalle

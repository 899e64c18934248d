#include "dalle/text/text_tokenizer.h"

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/text/clip_caption.h"
#include "dalle/text/pretokenize.h"

namespace dalle::text {

TextTokenizer TextTokenizer::load(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return Tokenizer::load(path);  // throws
  try {
    return from_bytes(read_file(path));
  } catch (const CheckpointError& error) {
    throw CheckpointError(str(path.string(), ": ", error.what()));
  }
}

TextTokenizer TextTokenizer::from_bytes(std::string file) {
  if (ClipBpe::is_vocabulary(file)) return ClipBpe::from_bytes(std::move(file));
  return Tokenizer::from_bytes(std::move(file));
}

TokenizerKind TextTokenizer::kind() const {
  return std::holds_alternative<ClipBpe>(held_) ? TokenizerKind::kClipBpe : TokenizerKind::kSentencePiece;
}

std::string TextTokenizer::normalize(std::string_view caption) const {
  return kind() == TokenizerKind::kClipBpe ? clean_clip_caption(caption) : normalize_caption(caption);
}

std::vector<int64_t> TextTokenizer::encode(std::string_view caption) const { return encode(caption, 0, {}); }

std::vector<int64_t> TextTokenizer::encode(std::string_view caption, double dropout, RandomKey key) const {
  return std::visit([&](const auto& tokenizer) { return tokenizer.encode(caption, dropout, key); }, held_);
}

std::string TextTokenizer::decode(std::span<const int64_t> ids) const {
  return std::visit([&](const auto& tokenizer) { return tokenizer.decode(ids); }, held_);
}

int64_t TextTokenizer::vocab_size() const {
  return std::visit([](const auto& tokenizer) { return tokenizer.vocab_size(); }, held_);
}

std::string TextTokenizer::piece(int64_t id) const {
  return std::visit([&](const auto& tokenizer) { return std::string(tokenizer.piece(id)); }, held_);
}

const std::string& TextTokenizer::model_bytes() const {
  if (const auto* clip = std::get_if<ClipBpe>(&held_)) return clip->file_bytes();
  return std::get<Tokenizer>(held_).model_bytes();
}

std::string TextTokenizer::identity() const {
  return std::visit([](const auto& tokenizer) { return std::string(tokenizer.identity()); }, held_);
}

}  // namespace dalle::text

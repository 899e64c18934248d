// The byte-level BPE of OpenAI's CLIP (Radford et al. 2021, openai/CLIP clip/simple_tokenizer.py), from its published
// vocabulary file bpe_simple_vocab_16e6.txt.gz (scripts/clip_vocabulary.sh). Ids equal those of open_clip and openai/CLIP for
// captions that ftfy leaves as they are.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dalle/core/random.h"

namespace dalle::text {

/// Immutable and cheap to copy; encode and decode may be called from many threads.
class ClipBpe {
 public:
  /// Merges that are read of the file's 262,144: the published models' vocabulary is 256 bytes, the same at the end of a
  /// word, these, and the start and end of text.
  static constexpr int64_t kMaxMerges = 48'894;

  /// Whether the bytes begin as a vocabulary file does: gzip, or a first line with "#version".
  static bool is_vocabulary(std::string_view bytes);

  /// The file's bytes, gzip or plain: a first line with "#version", then a merge of two pieces a line. Throws CheckpointError
  /// where they are damaged or a line is no merge of earlier pieces.
  static ClipBpe from_bytes(std::string bytes);

  /// Ids of the cleaned caption's words (clip_caption.h), without start and end of text; bytes can spell everything. Throws
  /// DataError where the caption is not UTF-8.
  std::vector<int64_t> encode(std::string_view caption) const;
  /// With BPE dropout (Provilkov et al. 2019): each candidate merge is passed over with probability `dropout` each time it
  /// comes up. A pure function of caption, dropout and key.
  std::vector<int64_t> encode(std::string_view caption, double dropout, RandomKey key) const;

  /// The words of the ids with one space between them; ids outside the vocabulary give nothing, bytes that are no UTF-8
  /// give U+FFFD.
  std::string decode(std::span<const int64_t> ids) const;

  /// Pieces; start of text is the next id, end of text the one after it.
  int64_t vocab_size() const;
  /// The piece in the file's notation, where a byte is a printable character: "cat</w>" ends a word.
  const std::string& piece(int64_t id) const;
  /// The vocabulary file, byte for byte.
  const std::string& file_bytes() const;
  /// Hash over the merges that are read: 32 hexadecimal digits.
  const std::string& identity() const;

 private:
  struct Model;
  explicit ClipBpe(std::shared_ptr<const Model> model) : model_(std::move(model)) {}

  std::shared_ptr<const Model> model_;
};

}  // namespace dalle::text

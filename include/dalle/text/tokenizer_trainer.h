// Trains the tokenizer from captions with SentencePiece's BPE trainer (paper 2.2; author in openai/DALL-E #22).
// SentencePiece sees the letter runs alone, counted, as its sentences: its own splitting has no option that keeps
// digits and white space from merging. All other characters enter as single pieces.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dalle::text {

struct TokenizerConfig {
  int64_t vocab_size = 16384;
  double character_coverage = 0.9995;
  bool byte_fallback = true;
  int64_t max_piece_length = 16;
  int64_t max_words = 1000000;

  static void visit_fields(auto& self, auto&& field) {
    field("vocab_size", self.vocab_size, "pieces in all: <unk>, 256 bytes with byte_fallback, characters and merges",
          {.min = 2, .max = 1 << 24});
    field("character_coverage", self.character_coverage,
          "share of the captions' characters that get a piece of their own; rarer ones go to bytes or <unk>",
          {.min = 0.5, .max = 1});
    field("byte_fallback", self.byte_fallback, "256 byte pieces, so that every caption can be written and read back");
    field("max_piece_length", self.max_piece_length, "longest piece", {.min = 1, .max = 512, .unit = "characters"});
    field("max_words", self.max_words, "train on the most frequent letter runs only; 0 = on all", {.min = 0});
  }
};

/// The bytes of a SentencePiece model. Deterministic: the same captions in any order give the same bytes. Where the
/// captions support fewer pieces than vocab_size, the model is smaller (hard_vocab_limit is off).
/// Throws DataError where the captions hold no letter run of two letters or one is not UTF-8, ConfigError where
/// vocab_size cannot hold the characters.
std::string train_tokenizer(const std::vector<std::string>& captions, const TokenizerConfig& config);

}  // namespace dalle::text

// How well a tokenizer fits captions: what train-tokenizer logs and saves.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dalle/text/text_tokenizer.h"

namespace dalle::text {

struct TokenizerReport {
  struct Caption {
    std::string text;
    int64_t num_tokens = 0;
    std::string pieces;  // as shown_pieces
  };

  // The vocabulary.
  int64_t num_pieces = 0;
  int64_t num_byte_pieces = 0;
  int64_t num_characters = 0;  // pieces of one character
  int64_t num_merges = 0;      // longer pieces
  int64_t num_unused = 0;      // characters and merges that no caption uses
  std::vector<std::string> longest_pieces;

  // The captions.
  int64_t num_captions = 0;
  int64_t num_tokens = 0;
  int64_t num_text_bytes = 0;  // of the normalised captions
  int64_t num_words = 0;       // letter runs
  int64_t num_distinct_words = 0;
  int64_t num_word_tokens = 0;                                       // tokens of letter runs
  int64_t num_whole_words = 0;                                       // letter runs that are one token
  int64_t num_fallback_bytes = 0;                                    // tokens that are bytes
  int64_t num_unknown = 0;                                           // tokens that are <unk>
  std::vector<std::pair<std::string, int64_t>> fallback_characters;  // most frequent first, at most 10
  std::vector<int64_t> lengths;                                      // tokens of each caption, sorted
  std::vector<Caption> longest;                                      // longest first, at most 5
  std::vector<Caption> examples;                                     // at most 5, spread over the captions

  // Own merges against SentencePiece's, without dropout.
  int64_t num_compared = 0;
  int64_t num_different = 0;

  /// Tokens per word (letter run); 1 where every word is a piece of its own.
  double fertility() const;
};

/// Reads every caption once. At most `max_compared` captions, spread evenly, are encoded by SentencePiece as well. Throws
/// DataError where a caption is not UTF-8.
TokenizerReport survey_tokenizer(const Tokenizer& tokenizer, std::span<const std::string> captions,
                                 int64_t max_compared = 100000);

/// The report as lines of text, the last one ended as well. `wanted_pieces`: vocab_size of the config.
std::string describe(const TokenizerReport& report, int64_t wanted_pieces);

/// Pieces of ids as text, "flag|_|of|_|japan", "_" for the space; ids outside the tokenizer's range are left out.
std::string shown_pieces(const TextTokenizer& tokenizer, std::span<const int64_t> ids);

}  // namespace dalle::text

// The merges of a BPE model over small integers: a pair of symbols is one look-up of a number, not of a text.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "dalle/text/sentencepiece_model.h"

namespace dalle::text {

/// Numbers of 64 bits to numbers >= 0, by open addressing with linear probing.
class FlatMap {
 public:
  /// Keeps the first value of a key. Any key but ~0 is allowed.
  void insert(uint64_t key, int32_t value);
  /// -1 where the key is not there.
  int32_t find(uint64_t key) const {
    if (keys_.empty()) return -1;
    size_t slot = slot_of(key);
    while (keys_[slot] != key) {
      if (keys_[slot] == kEmpty) return -1;
      slot = (slot + 1) & (keys_.size() - 1);
    }
    return values_[slot];
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ULL) >> shift_; }
  void grow();

  std::vector<uint64_t> keys_;  // a power of two of them, at most half in use
  std::vector<int32_t> values_;
  size_t size_ = 0;
  int shift_ = 64;
};

/// What a run of letters is made of while its neighbours merge.
struct Symbol {
  int32_t id;       // of MergeTable
  uint32_t offset;  // of its first byte in the text
};

/// Symbols 0 .. pieces - 1 are the pieces of the model. Further ones are characters that are no piece themselves but
/// occur in one, and kNoSymbol is every other character.
class MergeTable {
 public:
  static constexpr int32_t kNoSymbol = -1;

  explicit MergeTable(const SentencePieceModel& model);

  int32_t symbol_of(char32_t character) const {
    return character < kNumAscii ? ascii_[character] : characters_.find(character);
  }
  /// The piece that two neighbours form, or -1.
  int32_t merged(int32_t left, int32_t right) const {
    return left < 0 || right < 0 ? -1 : pairs_.find(pair_key(left, right));
  }
  float score(int32_t piece) const { return scores_[static_cast<size_t>(piece)]; }
  bool is_piece(int32_t symbol) const { return symbol >= 0 && static_cast<size_t>(symbol) < scores_.size(); }

 private:
  static constexpr char32_t kNumAscii = 128;
  static uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
  }

  std::vector<float> scores_;   // of the pieces
  std::vector<int32_t> ascii_;  // symbols of the first characters
  FlatMap characters_;
  FlatMap pairs_;
};

}  // namespace dalle::text

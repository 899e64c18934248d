#include "merge_table.h"

#include <bit>
#include <string>
#include <unordered_map>

#include "dalle/text/pretokenize.h"

namespace dalle::text {

void FlatMap::insert(uint64_t key, int32_t value) {
  if (2 * (size_ + 1) > keys_.size()) grow();
  size_t slot = slot_of(key);
  while (keys_[slot] != kEmpty && keys_[slot] != key) slot = (slot + 1) & (keys_.size() - 1);
  if (keys_[slot] == key) return;
  keys_[slot] = key;
  values_[slot] = value;
  ++size_;
}

void FlatMap::grow() {
  const std::vector<uint64_t> keys = std::move(keys_);
  const std::vector<int32_t> values = std::move(values_);
  const size_t slots = std::max<size_t>(16, 2 * keys.size());
  keys_.assign(slots, kEmpty);
  values_.assign(slots, -1);
  shift_ = 64 - std::countr_zero(slots);
  size_ = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] != kEmpty) insert(keys[i], values[i]);
  }
}

MergeTable::MergeTable(const SentencePieceModel& model) : ascii_(kNumAscii, kNoSymbol) {
  std::unordered_map<std::string, int32_t> symbols;
  for (const auto& piece : model.pieces) {
    if (piece.type == PieceType::kNormal) symbols.emplace(piece.text, static_cast<int32_t>(scores_.size()));
    scores_.push_back(piece.score);
  }
  auto next = static_cast<int32_t>(scores_.size());
  for (const auto& piece : model.pieces) {
    if (piece.type != PieceType::kNormal) continue;
    for (const char32_t character : to_code_points(piece.text)) {
      const auto [symbol, is_new] = symbols.emplace(to_utf8(character), next);
      if (is_new) ++next;
      characters_.insert(character, symbol->second);
    }
  }
  for (char32_t character = 0; character < kNumAscii; ++character) ascii_[character] = characters_.find(character);
  // Whatever merges were made before, a piece comes from two symbols that it begins and ends with.
  for (const auto& piece : model.pieces) {
    if (piece.type != PieceType::kNormal) continue;
    const std::string& text = piece.text;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = symbols.find(text.substr(0, cut)), right = symbols.find(text.substr(cut));
      if (left != symbols.end() && right != symbols.end())
        pairs_.insert(pair_key(left->second, right->second), symbols.at(text));
    }
  }
}

}  // namespace dalle::text

// Byte-pair merging of one letter run, written for reading: look at every pair of neighbours, merge the best, repeat.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dalle/core/random.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_model.h"

namespace dalle::testing {

/// Texts that the run falls into. Each candidate is skipped with probability `dropout`, and stays skipped until one of
/// its two texts changes.
inline std::vector<std::string> reference_bpe(const text::SentencePieceModel& model, std::string_view run,
                                              double dropout, RandomKey key) {
  std::map<std::string, float> scores;
  for (const auto& piece : model.pieces) {
    if (piece.type == text::PieceType::kNormal) scores.emplace(piece.text, piece.score);
  }
  std::vector<std::string> parts;
  std::vector<bool> skipped;  // [i]: the pair of parts i and i + 1
  for (const char32_t character : text::to_code_points(run)) parts.push_back(text::to_utf8(character));
  skipped.resize(parts.size(), false);
  RandomStream stream(key);
  while (true) {
    size_t best = parts.size();
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = scores.find(parts[i] + parts[i + 1]);
      if (found == scores.end() || skipped[i]) continue;
      if (best == parts.size() || found->second > scores.at(parts[best] + parts[best + 1])) best = i;
    }
    if (best == parts.size()) return parts;
    if (dropout > 0 && stream.uniform() < dropout) {
      skipped[best] = true;
      continue;
    }
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    skipped.erase(skipped.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    skipped[best] = false;
    if (best > 0) skipped[best - 1] = false;
  }
}

}  // namespace dalle::testing

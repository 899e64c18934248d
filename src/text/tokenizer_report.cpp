#include "dalle/text/tokenizer_report.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <unordered_map>

#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_reference.h"

namespace dalle::text {
namespace {

constexpr size_t kNumShown = 5;
constexpr size_t kNumFallbackCharacters = 10;
constexpr size_t kShownCharacters = 160;

/// What is counted over the captions before the tokenizer comes in.
struct Counts {
  std::unordered_map<std::string, int64_t> words;
  std::map<char32_t, int64_t> characters;
};

void count_text(std::string_view text, Counts& counts) {
  for (size_t offset = 0; offset < text.size();) {
    const auto piece = first_piece(text.substr(offset));
    if (is_letter(code_point_at(piece, 0).value)) ++counts.words[std::string(piece)];
    for (const char32_t character : to_code_points(piece)) ++counts.characters[character];
    offset += piece.size();
  }
}

void survey_words(const Tokenizer& tokenizer, const Counts& counts, TokenizerReport& report) {
  report.num_distinct_words = static_cast<int64_t>(counts.words.size());
  for (const auto& [word, count] : counts.words) {
    const auto num_tokens = static_cast<int64_t>(tokenizer.encode(word).size());
    report.num_words += count;
    report.num_word_tokens += count * num_tokens;
    if (num_tokens == 1) report.num_whole_words += count;
  }
}

void survey_characters(const Tokenizer& tokenizer, const Counts& counts, TokenizerReport& report) {
  for (const auto& [character, count] : counts.characters) {
    const auto ids = tokenizer.encode(to_utf8(character));
    if (ids.empty() || !(tokenizer.is_byte(ids[0]) || ids[0] == tokenizer.unknown_id())) continue;
    report.fallback_characters.emplace_back(to_utf8(character), count);
  }
  auto& found = report.fallback_characters;
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  if (found.size() > kNumFallbackCharacters) found.resize(kNumFallbackCharacters);
}

void survey_vocabulary(const Tokenizer& tokenizer, const std::vector<bool>& used, TokenizerReport& report) {
  report.num_pieces = tokenizer.vocab_size();
  std::vector<std::pair<size_t, std::string>> merges;  // by length
  for (int64_t id = 0; id < report.num_pieces; ++id) {
    if (id == tokenizer.unknown_id()) continue;
    if (tokenizer.is_byte(id)) {
      ++report.num_byte_pieces;
      continue;
    }
    const std::string piece = tokenizer.piece(id);
    const size_t length = to_code_points(piece).size();
    ++(length > 1 ? report.num_merges : report.num_characters);
    if (!used[static_cast<size_t>(id)]) ++report.num_unused;
    if (length > 1) merges.emplace_back(length, piece);
  }
  std::stable_sort(merges.begin(), merges.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; i < std::min(kNumShown, merges.size()); ++i) report.longest_pieces.push_back(merges[i].second);
}

TokenizerReport::Caption show_caption(const Tokenizer& tokenizer, const std::string& caption) {
  const auto ids = tokenizer.encode(caption);
  return {normalize_caption(caption), static_cast<int64_t>(ids.size()), shown_pieces(tokenizer, ids)};
}

void choose_captions(const Tokenizer& tokenizer, std::span<const std::string> captions, TokenizerReport& report) {
  std::vector<size_t> order(captions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const size_t count = std::min(kNumShown, order.size());
  const auto is_longer = [&](size_t a, size_t b) {
    return std::pair(-report.lengths[a], a) < std::pair(-report.lengths[b], b);
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), is_longer);
  for (size_t i = 0; i < count; ++i) {
    report.longest.push_back(show_caption(tokenizer, captions[order[i]]));
    report.examples.push_back(show_caption(tokenizer, captions[i * captions.size() / count]));
  }
}

void compare_with_sentencepiece(const Tokenizer& tokenizer, std::span<const std::string> captions, int64_t most,
                                TokenizerReport& report) {
  const SentencePieceReference reference(tokenizer.model_bytes());
  const size_t count = std::min(captions.size(), static_cast<size_t>(most));
  for (size_t i = 0; i < count; ++i) {
    const auto& caption = captions[i * captions.size() / count];
    if (tokenizer.encode(caption) != reference.encode(caption)) ++report.num_different;
  }
  report.num_compared = static_cast<int64_t>(count);
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

double ratio(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string percent(int64_t part, int64_t whole) {
  return fixed(100 * ratio(part, whole), part * 20 < whole ? 2 : 1) + " %";
}

/// For a terminal: no control characters, not too long.
std::string printable_text(const std::string& text) {
  std::string out;
  size_t count = 0;
  for (const char32_t character : to_code_points(text)) {
    if (++count > kShownCharacters) return out + "...";
    const bool control = character < 0x20 || (character >= 0x7F && character < 0xA0);
    out += to_utf8(control ? 0xFFFD : character);
  }
  return out;
}

std::string quoted_list(const std::vector<std::string>& texts) {
  std::string out;
  for (const auto& text : texts) out += str(out.empty() ? "" : ", ", "\"", printable_text(text), "\"");
  return out;
}

std::string describe_vocabulary(const TokenizerReport& report, int64_t wanted) {
  std::string text = str("vocabulary: ", grouped_digits(report.num_pieces), " pieces: <unk>, ",
                         grouped_digits(report.num_byte_pieces), " bytes, ", grouped_digits(report.num_characters),
                         " characters, ", grouped_digits(report.num_merges), " merges\n");
  if (report.num_pieces < wanted) {
    text += str("  fewer than vocab_size ", grouped_digits(wanted),
                ": the captions support no more (hard_vocab_limit is off)\n");
  }
  text += str("  in use          all but ", grouped_digits(report.num_unused), " of the characters and merges\n");
  if (!report.longest_pieces.empty()) text += str("  longest pieces  ", quoted_list(report.longest_pieces), "\n");
  return text;
}

std::string describe_fit(const TokenizerReport& report) {
  const auto quantile = [&](double share) {
    return grouped_digits(report.lengths[static_cast<size_t>(share * static_cast<double>(report.lengths.size() - 1))]);
  };
  std::string text = str("captions: ", grouped_digits(report.num_captions), ", ", grouped_digits(report.num_words),
                         " words (", grouped_digits(report.num_distinct_words), " different)\n", "  tokens          ",
                         grouped_digits(report.num_tokens), "\n");
  if (!report.lengths.empty()) {
    text += str("  a caption       mean ", fixed(ratio(report.num_tokens, report.num_captions), 1), ", median ",
                quantile(0.5), ", 99 of 100 up to ", quantile(0.99), ", longest ",
                grouped_digits(report.lengths.back()), " tokens\n");
  }
  text +=
      str("  fertility       ", fixed(report.fertility(), 2), " tokens a word; ",
          percent(report.num_whole_words, report.num_words), " of the words are one token\n", "  compression     ",
          fixed(ratio(report.num_text_bytes, report.num_tokens), 2), " bytes of text a token\n", "  unknown bytes   ",
          grouped_digits(report.num_fallback_bytes), " tokens (", percent(report.num_fallback_bytes, report.num_tokens),
          ") are bytes of characters without a piece, ", grouped_digits(report.num_unknown), " are <unk>\n");
  std::string characters;
  for (const auto& [character, count] : report.fallback_characters)
    characters += str(characters.empty() ? "" : ", ", "\"", printable_text(character), "\" ", grouped_digits(count));
  if (!characters.empty()) text += str("  most frequent   ", characters, "\n");
  return text;
}

std::string describe_cuts(const TokenizerReport& report) {
  std::string text = "captions cut by a prior's text_context (its first slot is the start of the text):\n";
  for (const int64_t context : {32, 64, 128, 256}) {
    const auto fits = std::upper_bound(report.lengths.begin(), report.lengths.end(), context - 1);
    const int64_t cut = report.lengths.end() - fits;
    char label[32];
    std::snprintf(label, sizeof label, "  %-16lld", static_cast<long long>(context));
    text += str(label, grouped_digits(cut), " (", percent(cut, report.num_captions), ")\n");
  }
  return text;
}

std::string describe_comparison(const TokenizerReport& report) {
  if (report.num_compared == 0) return "";
  std::string text = str("SentencePiece's own encoder: ");
  if (report.num_different == 0)
    return str(text, "the same ids on all ", grouped_digits(report.num_compared), " captions compared\n");
  return str(text, "other ids on ", grouped_digits(report.num_different), " of ", grouped_digits(report.num_compared),
             " captions compared (combining marks without a letter and U+2581 differ: docs/tokenizer.md)\n");
}

std::string describe_captions(const char* title, const std::vector<TokenizerReport::Caption>& captions) {
  std::string text = str(title, ":\n");
  for (const auto& caption : captions) {
    text += str("  ", caption.num_tokens, " tokens: ", printable_text(caption.text), "\n      ",
                printable_text(caption.pieces), "\n");
  }
  return text;
}

}  // namespace

double TokenizerReport::fertility() const { return ratio(num_word_tokens, num_words); }

TokenizerReport survey_tokenizer(const Tokenizer& tokenizer, std::span<const std::string> captions,
                                 int64_t max_compared) {
  TokenizerReport report;
  report.num_captions = static_cast<int64_t>(captions.size());
  std::vector<bool> used(static_cast<size_t>(tokenizer.vocab_size()), false);
  Counts counts;
  for (const auto& caption : captions) {
    const std::string text = normalize_caption(caption);
    report.num_text_bytes += static_cast<int64_t>(text.size());
    count_text(text, counts);
    const auto ids = tokenizer.encode(caption);
    for (const int64_t id : ids) {
      used[static_cast<size_t>(id)] = true;
      if (tokenizer.is_byte(id)) ++report.num_fallback_bytes;
      if (id == tokenizer.unknown_id()) ++report.num_unknown;
    }
    report.num_tokens += static_cast<int64_t>(ids.size());
    report.lengths.push_back(static_cast<int64_t>(ids.size()));
  }
  survey_words(tokenizer, counts, report);
  survey_characters(tokenizer, counts, report);
  survey_vocabulary(tokenizer, used, report);
  choose_captions(tokenizer, captions, report);
  compare_with_sentencepiece(tokenizer, captions, max_compared, report);
  std::sort(report.lengths.begin(), report.lengths.end());
  return report;
}

std::string describe(const TokenizerReport& report, int64_t wanted_pieces) {
  return describe_vocabulary(report, wanted_pieces) + describe_fit(report) + describe_cuts(report) +
         describe_comparison(report) + describe_captions("longest captions", report.longest) +
         describe_captions("examples", report.examples);
}

std::string shown_pieces(const TextTokenizer& tokenizer, std::span<const int64_t> ids) {
  std::string text;
  for (const int64_t id : ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) continue;
    const std::string piece = tokenizer.piece(id);
    text += (text.empty() ? "" : "|") + (piece == "\u2581" ? "_" : piece);  // SentencePiece's mark of a space
  }
  return text;
}

}  // namespace dalle::text

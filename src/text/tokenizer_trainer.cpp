#include "dalle/text/tokenizer_trainer.h"

#include <sentencepiece_trainer.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_model.h"

namespace dalle::text {
namespace {

struct Corpus {
  std::map<std::string, int64_t> words;          // letter runs; ordered, so that the caption order does not matter
  std::map<char32_t, int64_t> character_counts;  // of all characters
};

struct Word {
  std::string text;
  int64_t count;
};

Corpus count_words(const std::vector<std::string>& captions) {
  Corpus corpus;
  for (const auto& caption : captions) {
    const std::string text = normalize_caption(caption);
    for (const auto piece : split_pieces(text)) {
      const auto points = to_code_points(piece);
      if (is_letter(points.front())) ++corpus.words[std::string(piece)];
      for (const char32_t point : points) ++corpus.character_counts[point];
    }
  }
  return corpus;
}

/// SentencePiece uses U+2581 for the space and U+2585 for "unknown"; control characters and noncharacters it refuses.
bool may_be_piece(char32_t point) {
  const bool nonchar = (point >= 0xFDD0 && point <= 0xFDEF) || (point & 0xFFFE) == 0xFFFE;
  return point != 0x2581 && point != 0x2585 && point >= 0x20 && !(point >= 0x7F && point < 0xA0) && !nonchar;
}

/// The most frequent characters that together make up `coverage` of the text; the space is always in.
std::set<char32_t> choose_alphabet(const Corpus& corpus, double coverage) {
  std::vector<std::pair<int64_t, char32_t>> ranked;
  int64_t total = 0;
  for (const auto& [point, count] : corpus.character_counts) {
    ranked.emplace_back(-count, point);
    total += count;
  }
  std::sort(ranked.begin(), ranked.end());
  std::set<char32_t> alphabet{U' '};
  int64_t covered = 0;
  for (const auto& [negative_count, point] : ranked) {
    if (static_cast<double>(covered) >= coverage * static_cast<double>(total)) break;
    covered -= negative_count;
    if (may_be_piece(point)) alphabet.insert(point);
  }
  return alphabet;
}

/// Letter runs cut at characters outside the alphabet, most frequent first, at most `max_words`.
std::vector<Word> choose_words(const Corpus& corpus, const std::set<char32_t>& alphabet, int64_t max_words) {
  std::map<std::string, int64_t> counts;
  for (const auto& [word, count] : corpus.words) {
    std::string part;
    for (const char32_t point : to_code_points(word)) {
      if (alphabet.contains(point)) {
        part += to_utf8(point);
      } else if (!part.empty()) {
        counts[std::exchange(part, {})] += count;
      }
    }
    if (!part.empty()) counts[part] += count;
  }
  std::vector<Word> words;
  for (auto& [text, count] : counts) words.push_back({text, count});
  std::stable_sort(words.begin(), words.end(), [](const Word& a, const Word& b) { return a.count > b.count; });
  if (max_words > 0 && static_cast<int64_t>(words.size()) > max_words) {
    words.resize(static_cast<size_t>(max_words), Word{});
  }
  return words;
}

/// Hands the words to SentencePiece in its "text TAB count" form.
class WordIterator : public sentencepiece::SentenceIterator {
 public:
  explicit WordIterator(const std::vector<Word>& words) : words_(words) { set_line(); }
  bool done() const override { return index_ >= words_.size(); }
  void Next() override {
    ++index_;
    set_line();
  }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  void set_line() {
    if (!done()) line_ = str(words_[index_].text, '\t', words_[index_].count);
  }
  const std::vector<Word>& words_;
  size_t index_ = 0;
  std::string line_;
};

void check_vocab_size(const TokenizerConfig& config, size_t alphabet_size) {
  const int64_t needed = static_cast<int64_t>(alphabet_size) + 1 + (config.byte_fallback ? 256 : 0);
  if (config.vocab_size >= needed) return;
  throw ConfigError(
      Problem{.place = "tokenizer.vocab_size",
              .expected = str("at least ", needed, " (", alphabet_size, " characters, <unk>",
                              config.byte_fallback ? ", 256 bytes)" : ")"),
              .got = str(config.vocab_size),
              .hint = "raise it, lower tokenizer.character_coverage or switch tokenizer.byte_fallback off"});
}

/// Characters that no letter run holds, as words of their own: SentencePiece's required_chars would do, but release
/// 0.1.97 aborts on required characters that its sentences lack.
void add_single_characters(const Corpus& corpus, const std::set<char32_t>& alphabet, std::vector<Word>& words) {
  std::set<char32_t> in_words;
  for (const auto& word : words) {
    for (const char32_t point : to_code_points(word.text)) in_words.insert(point);
  }
  for (const char32_t point : alphabet) {
    if (in_words.contains(point)) continue;
    const auto found = corpus.character_counts.find(point);
    const int64_t count = found == corpus.character_counts.end() ? 1 : found->second;
    words.push_back({point == U' ' ? "\xE2\x96\x81" : to_utf8(point), count});
  }
}

std::string run_trainer(const std::vector<Word>& words, const TokenizerConfig& config) {
  const auto flag = [](bool value) { return std::string(value ? "true" : "false"); };
  const std::unordered_map<std::string, std::string> options{
      {"model_type", "bpe"},
      {"vocab_size", str(config.vocab_size)},
      {"hard_vocab_limit", "false"},
      {"byte_fallback", flag(config.byte_fallback)},
      {"character_coverage", "1.0"},
      {"max_sentencepiece_length", str(config.max_piece_length)},
      {"input_format", "tsv"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"bos_id", "-1"},
      {"eos_id", "-1"},
      {"num_threads", "1"},
      {"minloglevel", "2"},  // errors come back as a status
  };
  WordIterator iterator(words);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, &model);
  if (!status.ok()) throw DataError(str("SentencePiece could not train the tokenizer: ", status.ToString()));
  return model;
}

}  // namespace

std::string train_tokenizer(const std::vector<std::string>& captions, const TokenizerConfig& config) {
  const Corpus corpus = count_words(captions);
  const auto alphabet = choose_alphabet(corpus, config.character_coverage);
  check_vocab_size(config, alphabet.size());
  auto words = choose_words(corpus, alphabet, config.max_words);
  const bool has_pair =
      std::any_of(words.begin(), words.end(), [](const Word& w) { return to_code_points(w.text).size() > 1; });
  if (!has_pair) {
    throw DataError(Problem{.place = "captions",
                            .expected = "letter runs of at least two letters",
                            .got = str("none in ", captions.size(), " captions"),
                            .hint = "look at the captions of the data set: it needs words of two letters or more"});
  }
  add_single_characters(corpus, alphabet, words);
  return run_trainer(words, config);
}

}  // namespace dalle::text

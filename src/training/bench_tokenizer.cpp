// The tokenizer of the paper's size on made captions, beside SentencePiece's own encoder.
#include <algorithm>
#include <cmath>
#include <memory>

#include "dalle/core/random.h"
#include "dalle/text/sentencepiece_reference.h"
#include "dalle/text/tokenizer.h"
#include "dalle/text/tokenizer_trainer.h"
#include "dalle/training/bench_subjects.h"

namespace dalle::training {
namespace {

constexpr int64_t kNumCaptions = 20000;
constexpr int64_t kNumWords = 30000;

std::string invented_word(RandomStream& random) {
  static constexpr const char* kOnsets[] = {"b", "c", "d", "f",  "g",  "h",  "l",  "m",  "n",  "p", "r",
                                            "s", "t", "w", "br", "ch", "gr", "sh", "st", "th", "tr"};
  static constexpr const char* kRimes[] = {"a",  "e",  "i",  "o",  "u",  "ea", "ou",  "an",  "ar",  "at",
                                           "er", "ic", "in", "on", "or", "ot", "and", "ent", "ing", "ow"};
  std::string word;
  for (int64_t n = random.integer(1, 4); n > 0; --n) {
    word += kOnsets[random.integer(0, std::size(kOnsets) - 1)];
    word += kRimes[random.integer(0, std::size(kRimes) - 1)];
  }
  return word;
}

/// 4 to 20 words each, word number k about as frequent as 1/k, some with numbers and punctuation.
std::vector<std::string> invented_captions() {
  RandomStream random(random_key(4, Purpose::kEvaluation));
  std::vector<std::string> words;
  for (int64_t i = 0; i < kNumWords; ++i) words.push_back(invented_word(random));
  std::vector<std::string> captions;
  for (int64_t i = 0; i < kNumCaptions; ++i) {
    std::string caption = "A";
    for (int64_t n = random.integer(4, 20); n > 0; --n) {
      const double rank = std::pow(static_cast<double>(kNumWords), random.uniform());
      caption += " " + words[std::min(static_cast<size_t>(rank), words.size()) - 1];
      if (random.uniform() < 0.1) caption += ",";
      if (random.uniform() < 0.05) caption += " " + std::to_string(random.integer(1, 2000));
    }
    captions.push_back(caption + ".");
  }
  return captions;
}

std::vector<BenchSubject> tokenizer_subjects(const BenchOptions&, at::Device) {
  struct Parts {
    std::vector<std::string> captions = invented_captions();
    text::Tokenizer tokenizer = text::Tokenizer::from_bytes(text::train_tokenizer(captions, {.vocab_size = 16384}));
    text::SentencePieceReference reference{tokenizer.model_bytes()};
  };
  const auto parts = std::make_shared<const Parts>();
  const auto sentencepiece = [=] {
    for (const auto& caption : parts->captions) parts->reference.encode(caption);
  };
  const auto ours = [=](double dropout) {
    return [=] {
      for (size_t i = 0; i < parts->captions.size(); ++i)
        parts->tokenizer.encode(parts->captions[i], dropout, random_key(1, Purpose::kBpeDropout, i));
    };
  };
  return {{"sentencepiece", sentencepiece, kNumCaptions},
          {"ours", ours(0), kNumCaptions},
          {"ours_dropout_0.1", ours(0.1), kNumCaptions}};
}

}  // namespace

BenchConfig tokenizer_bench_config() {
  return {BenchJob::kTokenize, "invented_16384_pieces", "captions/s", tokenizer_subjects};
}

}  // namespace dalle::training

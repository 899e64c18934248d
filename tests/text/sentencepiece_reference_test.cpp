// ctest: slow
// Our merge loop against SentencePiece's on 100,000 captions, and both against the definition.
#include "dalle/text/sentencepiece_reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_model.h"
#include "dalle/text/tokenizer.h"
#include "dalle/text/tokenizer_trainer.h"
#include "support/emoji_captions.h"
#include "support/multilingual_captions.h"
#include "support/reference_bpe.h"

namespace dalle::text {
namespace {

constexpr size_t kNumCaptions = 100000;

/// All shipped captions, then made ones; no two alike when normalised.
const std::vector<std::string>& many_captions() {
  static const std::vector<std::string> captions = [] {
    std::unordered_set<std::string> seen;
    std::vector<std::string> all;
    const auto add = [&](const std::string& caption) {
      if (all.size() < kNumCaptions && seen.insert(normalize_caption(caption)).second) all.push_back(caption);
    };
    for (const std::string file : {"train.tar", "val.tar"}) {
      for (const auto& caption : testing::emoji_captions(file)) add(caption);
    }
    for (const auto& caption : testing::MultilingualCaptions(1).make(kNumCaptions)) add(caption);
    return all;
  }();
  return captions;
}

/// Of the paper's size, on half of the captions: the other half is new to it.
const Tokenizer& large_tokenizer() {
  static const Tokenizer instance = [] {
    std::vector<std::string> half;
    for (size_t i = 0; i < many_captions().size(); i += 2) half.push_back(many_captions()[i]);
    return Tokenizer::from_bytes(train_tokenizer(half, {.vocab_size = 16384, .character_coverage = 1}));
  }();
  return instance;
}

Tokenizer golden_tokenizer() {
  return Tokenizer::load(std::filesystem::path(DALLE_SOURCE_DIR) / "tests" / "golden" / "sentencepiece.model");
}

void expect_same_ids(const Tokenizer& tokenizer) {
  const SentencePieceReference reference(tokenizer.model_bytes());
  size_t num_different = 0;
  int64_t num_tokens = 0;
  for (const auto& caption : many_captions()) {
    const auto ids = tokenizer.encode(caption);
    num_tokens += static_cast<int64_t>(ids.size());
    if (ids == reference.encode(caption)) continue;
    if (++num_different <= 5) ADD_FAILURE() << caption;
  }
  log_info(str(grouped_digits(static_cast<int64_t>(many_captions().size())), " different captions, ",
               grouped_digits(num_tokens), " tokens of ", grouped_digits(tokenizer.vocab_size()),
               " pieces: other ids than SentencePiece's on ", num_different));
  EXPECT_EQ(many_captions().size(), kNumCaptions);
  EXPECT_EQ(num_different, 0U);
}

TEST(SentencePieceReference, OursGivesTheSameIdsOn100000Captions) { expect_same_ids(golden_tokenizer()); }

TEST(SentencePieceReference, OursGivesTheSameIdsOn100000CaptionsWith16384Pieces) {
  ASSERT_EQ(large_tokenizer().vocab_size(), 16384);
  expect_same_ids(large_tokenizer());
}

TEST(SentencePieceReference, EveryLanguageRoundTripsWithAndWithoutDropout) {
  testing::MultilingualCaptions captions(2);
  for (const Tokenizer& tokenizer : {golden_tokenizer(), large_tokenizer()}) {
    for (const auto& language : testing::languages()) {
      for (uint64_t i = 0; i < 200; ++i) {
        const std::string caption = captions.next(language), normalised = normalize_caption(caption);
        const auto dropped = tokenizer.encode(caption, 0.1, random_key(1, Purpose::kBpeDropout, i));
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(caption)), normalised) << language.name << ": " << caption;
        EXPECT_EQ(tokenizer.decode(dropped), normalised) << language.name << ": " << caption;
      }
    }
  }
}

TEST(SentencePieceReference, MergesAreThoseOfTheDefinitionWithDropoutToo) {
  const auto model = parse_sentencepiece_model(large_tokenizer().model_bytes());
  testing::MultilingualCaptions captions(3);
  size_t num_long = 0;
  for (uint64_t i = 0; i < 300; ++i) {
    // One letter run of a few or of many letters: they take different ways through the tokenizer.
    std::string run;
    for (uint64_t n = 1 + i % 12; n > 0; --n) {
      const std::string caption = normalize_caption(captions.next(testing::languages()[i % 13]));
      for (const auto piece : split_pieces(caption)) {
        if (is_letter(to_code_points(piece).front())) run += piece;
      }
    }
    run = normalize_caption(run);  // a final sigma is one no more inside of a longer run
    num_long += to_code_points(run).size() > 100 ? 1 : 0;
    for (const double dropout : {0.0, 0.1, 0.5}) {
      const auto key = random_key(4, Purpose::kBpeDropout, i);
      std::vector<std::string> parts;
      for (const int64_t id : large_tokenizer().encode(run, dropout, key)) {
        ASSERT_FALSE(large_tokenizer().is_byte(id)) << run;
        parts.push_back(large_tokenizer().piece(id));
      }
      EXPECT_EQ(parts, testing::reference_bpe(model, run, dropout, key)) << run << ", dropout " << dropout;
    }
  }
  EXPECT_GT(num_long, 100U);
}

TEST(SentencePieceReference, RefusesWhatIsNoModel) {
  EXPECT_THROW(SentencePieceReference("no model"), CheckpointError);
  EXPECT_THROW(SentencePieceReference(golden_tokenizer().model_bytes()).encode("\xFF"), DataError);
}

}  // namespace
}  // namespace dalle::text

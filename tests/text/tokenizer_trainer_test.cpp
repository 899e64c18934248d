#include "dalle/text/tokenizer_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <string>

#include "dalle/core/error.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/tokenizer.h"
#include "support/emoji_captions.h"

namespace dalle::text {
namespace {

using ::testing::HasSubstr;

TEST(TokenizerTrainer, TrainsOnTheShippedCaptionsAndEqualsSentencePiece) {
  const auto captions = testing::emoji_captions("train.tar");
  const auto tokenizer = Tokenizer::from_bytes(train_tokenizer(captions, {.vocab_size = 1024}));
  EXPECT_EQ(tokenizer.vocab_size(), 1024);
  sentencepiece::SentencePieceProcessor reference;
  ASSERT_TRUE(reference.LoadFromSerializedProto(tokenizer.model_bytes()).ok());
  size_t num_ids = 0;
  size_t num_bytes = 0;
  for (const auto& caption : captions) {
    std::vector<int> ids;
    ASSERT_TRUE(reference.Encode(normalize_caption(caption), &ids).ok());
    const auto ours = tokenizer.encode(caption);
    EXPECT_EQ(ours, std::vector<int64_t>(ids.begin(), ids.end())) << caption;
    EXPECT_EQ(tokenizer.decode(ours), normalize_caption(caption));
    num_ids += ours.size();
    num_bytes += caption.size();
  }
  EXPECT_LT(num_ids * 2, num_bytes);  // it compresses
}

TEST(TokenizerTrainer, PiecesOfSeveralCharactersAreLettersOnly) {
  const auto tokenizer = Tokenizer::from_bytes(
      train_tokenizer({"12:30 12:30 12:30 the the the cat-fish 12:30", "a  b, a b, a b,"}, {.vocab_size = 300}));
  for (int64_t id = 257; id < tokenizer.vocab_size(); ++id) {
    const std::string piece = tokenizer.piece(id);
    const auto points = to_code_points(piece);
    const bool letters = std::all_of(points.begin(), points.end(), is_letter);
    EXPECT_TRUE(points.size() == 1 || letters) << piece;
  }
  EXPECT_EQ(tokenizer.encode("12:30").size(), 5u);
  EXPECT_EQ(tokenizer.encode("the").size(), 1u);
}

TEST(TokenizerTrainer, EveryFrequentCharacterHasAPiece) {
  const auto tokenizer =
      Tokenizer::from_bytes(train_tokenizer({"Cat 7, ok!", "κατ"}, {.vocab_size = 400, .character_coverage = 1}));
  for (const std::string character : {"c", "a", "t", " ", "7", ",", "!", "κ", "α", "τ"}) {
    const auto ids = tokenizer.encode("x" + character + "x");  // inner, so that a space is not trimmed
    ASSERT_EQ(ids.size(), 3u) << character;
    EXPECT_GE(ids[1], 257) << character;
  }
}

TEST(TokenizerTrainer, DoesNotDependOnTheOrderOfTheCaptions) {
  auto captions = testing::emoji_captions("val.tar");
  const auto first = train_tokenizer(captions, {.vocab_size = 600});
  std::reverse(captions.begin(), captions.end());
  EXPECT_EQ(train_tokenizer(captions, {.vocab_size = 600}), first);
}

TEST(TokenizerTrainer, SmallCorporaGiveFewerPieces) {
  const auto tokenizer = Tokenizer::from_bytes(train_tokenizer({"tiny tin"}, {.vocab_size = 16384}));
  EXPECT_LT(tokenizer.vocab_size(), 300);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("Tiny TIN")), "tiny tin");
}

TEST(TokenizerTrainer, WorksWithoutByteFallback) {
  const auto tokenizer =
      Tokenizer::from_bytes(train_tokenizer({"the cat the dog"}, {.vocab_size = 40, .byte_fallback = false}));
  EXPECT_EQ(tokenizer.piece(0), "<unk>");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("the cat é")), "the cat ⁇");
}

TEST(TokenizerTrainer, SurvivesAwkwardCharacters) {
  const auto tokenizer = Tokenizer::from_bytes(
      train_tokenizer({"ab \x01 \u2581 \u2585 \uFFFE \U0001F600 <unk> <0x41> , \u200D", "ab e\u0301e\u0301"},
                      {.vocab_size = 400, .character_coverage = 1}));
  const std::string text = "ab \x01 \u2581 \u2585 \uFFFE <unk> <0x41> e\u0301 \u200D";
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), normalize_caption(text));
}

TEST(TokenizerTrainer, UsesTheMostFrequentWordsWhereTold) {
  const auto tokenizer = Tokenizer::from_bytes(train_tokenizer({"cat cat dog"}, {.vocab_size = 400, .max_words = 1}));
  EXPECT_EQ(tokenizer.encode("cat").size(), 1u);
  EXPECT_EQ(tokenizer.encode("dog").size(), 3u);
}

TEST(TokenizerTrainer, RefusesWhatCannotBeTrained) {
  EXPECT_THROW(train_tokenizer({}, {}), DataError);
  EXPECT_THROW(train_tokenizer({"1 2 3", "a b"}, {}), DataError);
  EXPECT_THROW(train_tokenizer({"ok \xFF"}, {}), DataError);
  try {
    train_tokenizer({"the cat"}, {.vocab_size = 100});
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("at least 263"));
  }
}

TEST(TokenizerTrainer, IsSilentOnStderr) {
  ::testing::internal::CaptureStderr();
  train_tokenizer({"a silent night silent night"}, {.vocab_size = 280});
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::Not(HasSubstr("trainer_interface")));
}

}  // namespace
}  // namespace dalle::text

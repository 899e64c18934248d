#include "dalle/text/tokenizer_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/text/tokenizer_trainer.h"

namespace dalle::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

Tokenizer cat_tokenizer() {
  return Tokenizer::from_bytes(train_tokenizer({"the cat", "the cat", "the dot"}, {.vocab_size = 270}));
}

TEST(TokenizerReport, CountsByHand) {
  const auto tokenizer = cat_tokenizer();
  ASSERT_EQ(tokenizer.encode("the").size(), 1U);
  ASSERT_EQ(tokenizer.encode("cat").size(), 1U);
  const std::vector<std::string> captions{"The cat", "the  cat é é", "tac", "cat 😀"};
  const auto report = survey_tokenizer(tokenizer, captions);
  EXPECT_EQ(report.num_captions, 4);
  EXPECT_EQ(report.num_words, 8);           // the cat the cat é é tac cat
  EXPECT_EQ(report.num_distinct_words, 4);  // the cat é tac
  EXPECT_EQ(report.num_whole_words, 5);
  EXPECT_EQ(report.num_word_tokens, 5 + 2 * 2 + 3);
  EXPECT_DOUBLE_EQ(report.fertility(), 12.0 / 8);
  EXPECT_EQ(report.num_fallback_bytes, 2 * 2 + 4);
  EXPECT_EQ(report.num_unknown, 0);
  EXPECT_THAT(report.fallback_characters, ElementsAre(Pair("é", 2), Pair("😀", 1)));
  EXPECT_THAT(report.lengths, ElementsAre(3, 3, 6, 9));
  EXPECT_EQ(report.num_tokens, 3 + 3 + 6 + 9);
  EXPECT_EQ(report.num_text_bytes, 7 + 13 + 3 + 8);
  ASSERT_EQ(report.longest.size(), 4U);
  EXPECT_EQ(report.longest[0].text, "the cat é é");
  EXPECT_EQ(report.longest[0].num_tokens, 9);
  EXPECT_EQ(report.longest[0].pieces, "the|_|cat|_|<0xC3>|<0xA9>|_|<0xC3>|<0xA9>");
  EXPECT_EQ(report.longest[1].text, "cat 😀");
  EXPECT_EQ(report.examples.size(), 4U);
  EXPECT_EQ(report.num_compared, 4);
  EXPECT_EQ(report.num_different, 0);
  EXPECT_EQ(report.num_pieces, tokenizer.vocab_size());
  EXPECT_EQ(report.num_byte_pieces, 256);
  EXPECT_EQ(1 + report.num_byte_pieces + report.num_characters + report.num_merges, report.num_pieces);
}

TEST(TokenizerReport, TextNamesWhatAReaderLooksFor) {
  const std::vector<std::string> captions{"the cat", "the cat é", std::string(70, '1'), "a\x1B[31m"};
  const auto report = survey_tokenizer(cat_tokenizer(), captions);
  const std::string text = describe(report, 16384);
  EXPECT_THAT(text, HasSubstr("fewer than vocab_size 16,384: the captions support no more (hard_vocab_limit is off)"));
  EXPECT_THAT(text, HasSubstr("tokens a word"));
  EXPECT_THAT(text, HasSubstr("unknown bytes"));
  EXPECT_THAT(text, HasSubstr("\n  64              1 (25.0 %)\n"));
  EXPECT_THAT(text, HasSubstr("\n  128             0 (0.00 %)\n"));
  EXPECT_THAT(text, HasSubstr("the same ids on all 4 captions compared"));
  EXPECT_THAT(text, HasSubstr("longest captions:\n  70 tokens: 1111"));
  EXPECT_THAT(text, HasSubstr("examples:\n  3 tokens: the cat\n      the|_|cat\n"));
  EXPECT_THAT(text, Not(HasSubstr("\x1B"))) << "control characters of captions must not reach the terminal";
  EXPECT_THAT(describe(report, report.num_pieces), Not(HasSubstr("hard_vocab_limit")));
}

TEST(TokenizerReport, SaysWhereSentencePieceDiffers) {
  const std::vector<std::string> captions{"the cat", "\u2581"};
  const auto report = survey_tokenizer(cat_tokenizer(), captions);
  EXPECT_EQ(report.num_different, 1);
  EXPECT_THAT(describe(report, 0), HasSubstr("other ids on 1 of 2 captions"));
}

TEST(TokenizerReport, ComparesNoMoreThanItIsTold) {
  const std::vector<std::string> captions(50, "the cat");
  EXPECT_EQ(survey_tokenizer(cat_tokenizer(), captions, 7).num_compared, 7);
  EXPECT_EQ(survey_tokenizer(cat_tokenizer(), captions, 0).num_compared, 0);
}

TEST(TokenizerReport, TakesEmptyAndRefusesBrokenCaptions) {
  const auto empty = survey_tokenizer(cat_tokenizer(), {});
  EXPECT_EQ(empty.num_captions, 0);
  EXPECT_EQ(empty.fertility(), 0);
  EXPECT_FALSE(describe(empty, 300).empty());
  const std::vector<std::string> broken{"\xFF"};
  EXPECT_THROW(survey_tokenizer(cat_tokenizer(), broken), DataError);
}

TEST(ShownPieces, MarksSpacesAndSkipsPadding) {
  const auto tokenizer = cat_tokenizer();
  auto ids = tokenizer.encode("the cat");
  ids.push_back(-1);
  ids.push_back(tokenizer.vocab_size());
  EXPECT_EQ(shown_pieces(tokenizer, ids), "the|_|cat");
}

}  // namespace
}  // namespace dalle::text

#include "dalle/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <fstream>
#include <set>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_model.h"
#include "support/emoji_captions.h"
#include "support/thrown_message.h"

namespace dalle::text {
namespace {

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(DALLE_SOURCE_DIR) / "tests" / "golden" / name;
}

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::load(golden("sentencepiece.model"));
  return instance;
}

TEST(Tokenizer, GivesTheIdsOfThePythonPackage) {
  std::ifstream file(golden("sentencepiece_ids.tsv"));
  int count = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const size_t tab = line.find('\t');
    std::vector<int64_t> expected;
    std::istringstream numbers(line.substr(tab + 1));
    for (int64_t id = 0; numbers >> id;) expected.push_back(id);
    EXPECT_EQ(tokenizer().encode(line.substr(0, tab)), expected) << line;
  }
  EXPECT_EQ(count, 200);
}

TEST(Tokenizer, EqualsSentencePieceOnEveryEmojiCaption) {
  sentencepiece::SentencePieceProcessor reference;
  ASSERT_TRUE(reference.LoadFromSerializedProto(tokenizer().model_bytes()).ok());
  size_t count = 0;
  for (const std::string file : {"train.tar", "val.tar"}) {
    for (const auto& caption : testing::emoji_captions(file)) {
      std::vector<int> ids;
      ASSERT_TRUE(reference.Encode(normalize_caption(caption), &ids).ok());
      EXPECT_EQ(tokenizer().encode(caption), std::vector<int64_t>(ids.begin(), ids.end())) << caption;
      ++count;
    }
  }
  EXPECT_EQ(count, 3139u + 325u);
}

TEST(Tokenizer, RoundTripsAnyScriptThroughBytes) {
  for (const std::string caption : {"The  Cat", "日本語 テスト", "😀👍🏽 ok", "▁ is not a space",
                                    "a\u0301 ⁇ <unk> <0x41>", "", "Ελληνικός", "zero\u200Bwidth", "\x01\x7F"}) {
    EXPECT_EQ(tokenizer().decode(tokenizer().encode(caption)), normalize_caption(caption)) << caption;
  }
}

TEST(Tokenizer, RoundTripsRandomTextWithAndWithoutDropout) {
  RandomStream stream(random_key(5, Purpose::kShuffle));
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (int64_t n = stream.integer(1, 30); n > 0; --n) {
      const bool ascii = stream.uniform() < 0.8;
      text += to_utf8(static_cast<char32_t>(ascii ? stream.integer(0x20, 0x7E) : stream.integer(1, 0xD7FF)));
    }
    const auto key = random_key(7, Purpose::kBpeDropout, static_cast<uint64_t>(i));
    EXPECT_EQ(tokenizer().decode(tokenizer().encode(text)), normalize_caption(text));
    EXPECT_EQ(tokenizer().decode(tokenizer().encode(text, 0.3, key)), normalize_caption(text));
  }
}

TEST(Tokenizer, DropoutIsAPureFunctionOfTheKey) {
  const std::string caption = "woman with red paper lantern and musical instruments";
  std::set<std::vector<int64_t>> seen;
  for (uint64_t i = 0; i < 50; ++i) {
    const auto key = random_key(3, Purpose::kBpeDropout, i);
    const auto ids = tokenizer().encode(caption, 0.1, key);
    tokenizer().encode("something else", 0.5, random_key(3, Purpose::kBpeDropout, i + 1000));
    EXPECT_EQ(tokenizer().encode(caption, 0.1, key), ids);
    seen.insert(ids);
  }
  EXPECT_GT(seen.size(), 10u);
  EXPECT_EQ(tokenizer().encode(caption, 0, random_key(3, Purpose::kBpeDropout, 1)), tokenizer().encode(caption));
}

TEST(Tokenizer, DropoutSkipsMergesAtItsRate) {
  // "aa" is one merge: with dropout p the run "aa" stays apart with probability p.
  std::string pair;
  for (int64_t id = 0; id < tokenizer().vocab_size(); ++id) {
    const auto piece = tokenizer().piece(id);
    if (piece.size() == 2 && is_letter(static_cast<char32_t>(piece[0])) && tokenizer().encode(piece).size() == 1) {
      pair = piece;
      break;
    }
  }
  ASSERT_FALSE(pair.empty());
  int apart = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    apart += tokenizer().encode(pair, 0.1, random_key(9, Purpose::kBpeDropout, i)).size() == 2 ? 1 : 0;
  }
  EXPECT_NEAR(apart / 4000.0, 0.1, 0.02);
}

TEST(Tokenizer, FullDropoutLeavesCharacters) {
  const std::string caption = "red paper lantern";
  EXPECT_EQ(tokenizer().encode(caption, 1, random_key(9, Purpose::kBpeDropout)).size(), caption.size());
}

TEST(Tokenizer, LongRunsStayFast) {
  // Quadratic merging would take minutes here.
  const std::string text(400000, 'a');
  EXPECT_EQ(tokenizer().decode(tokenizer().encode(text)), text);
}

TEST(Tokenizer, DecodesPaddingAsNothingAndBrokenBytesAsReplacement) {
  const auto ids = tokenizer().encode("é!");  // is é a piece or bytes: both decode
  std::vector<int64_t> padded = ids;
  padded.push_back(-1);
  EXPECT_EQ(tokenizer().decode(padded), "é!");
  const std::vector<int64_t> lone_byte{1 + 0xE2};
  ASSERT_EQ(tokenizer().piece(lone_byte[0]), "<0xE2>");
  EXPECT_EQ(tokenizer().decode(lone_byte), "\uFFFD");
  EXPECT_THROW(tokenizer().decode(std::vector<int64_t>{tokenizer().vocab_size()}), DataError);
}

TEST(Tokenizer, IdentityCoversPiecesAndScores) {
  std::string changed = tokenizer().model_bytes();
  EXPECT_EQ(Tokenizer::from_bytes(changed).identity(), tokenizer().identity());
  // The merges come first after <unk> and 256 bytes; change one letter of the first of them.
  const std::string piece = tokenizer().piece(257);
  const size_t place = changed.find(std::string{'\n', static_cast<char>(piece.size())} + piece);
  ASSERT_NE(place, std::string::npos);
  changed[place + 2] = 'q';
  EXPECT_NE(Tokenizer::from_bytes(changed).identity(), tokenizer().identity());
}

TEST(Tokenizer, RefusesPiecesThatItsPreSplitCouldNeverReach) {
  // SentencePiece would give such a piece's id where we never do: better no ids than other ones.
  std::string changed = tokenizer().model_bytes();
  const std::string piece = tokenizer().piece(257);
  const size_t place = changed.find(std::string{'\n', static_cast<char>(piece.size())} + piece);
  ASSERT_NE(place, std::string::npos);
  changed[place + 2] = '7';
  EXPECT_THAT(testing::message_of<CheckpointError>([&] { Tokenizer::from_bytes(changed); }),
              ::testing::HasSubstr("'7" + piece.substr(1) + "'"));
}

TEST(Tokenizer, ADamagedModelIsRefusedOrEncodesWithoutHarm) {
  const std::string& good = tokenizer().model_bytes();
  const std::string text = "the red paper lantern, 日本 " + std::string(200, 'e');
  int64_t num_refused = 0;
  for (size_t place = 0; place < good.size(); place += 41) {
    std::string damaged = good;
    damaged[place] = static_cast<char>(~damaged[place]);
    try {
      const auto model = Tokenizer::from_bytes(damaged);
      for (const int64_t id : model.encode(text, 0.1, random_key(1, Purpose::kBpeDropout))) {
        ASSERT_GE(id, 0);
        ASSERT_LT(id, model.vocab_size());
      }
    } catch (const CheckpointError&) {
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 10);
}

TEST(Tokenizer, RefusesWhatIsNotAUsableModel) {
  EXPECT_THROW(Tokenizer::load("/nonexistent/tokenizer.model"), ConfigError);
  EXPECT_THAT(testing::message_of<CheckpointError>([] { Tokenizer::load(golden("sentencepiece_ids.tsv")); }),
              ::testing::HasSubstr("sentencepiece_ids.tsv: tokenizer model: expected a SentencePiece model file"));
  EXPECT_THROW(Tokenizer::from_bytes(""), CheckpointError);
  EXPECT_THROW(Tokenizer::from_bytes("not a model at all"), CheckpointError);
  const std::string& good = tokenizer().model_bytes();
  for (size_t size = 1; size < good.size(); size += 97) {
    // A prefix is refused or, where it ends between two fields, lacks the trainer's or normaliser's section.
    EXPECT_THROW(Tokenizer::from_bytes(good.substr(0, size)), CheckpointError) << size;
  }
}

}  // namespace
}  // namespace dalle::text

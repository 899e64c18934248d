// One face for both kinds of tokenizers.
#include "dalle/text/text_tokenizer.h"

#include <gmock/gmock.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/temp_directory.h"
#include "support/thrown_message.h"

namespace dalle::text {
namespace {

using ::testing::HasSubstr;

const std::string kGolden = std::string(DALLE_SOURCE_DIR) + "/tests/golden/";
const std::string kFiles[] = {kGolden + "sentencepiece.model", kGolden + "clip_bpe/vocabulary.txt.gz"};

TEST(TextTokenizer, TheFileSaysWhichKindItIs) {
  EXPECT_EQ(TextTokenizer::load(kFiles[0]).kind(), TokenizerKind::kSentencePiece);
  EXPECT_EQ(TextTokenizer::load(kFiles[1]).kind(), TokenizerKind::kClipBpe);
  EXPECT_EQ(TextTokenizer::from_bytes("#version: 0.2\na b").kind(), TokenizerKind::kClipBpe);
}

TEST(TextTokenizer, EachKindGivesWhatItsOwnClassGives) {
  const std::string caption = "A flag, Japan's";
  const auto key = random_key(3, Purpose::kBpeDropout);
  const auto piece_model = Tokenizer::load(kFiles[0]);
  const auto bpe = ClipBpe::from_bytes(read_file(kFiles[1]));
  const auto compare = [&](const TextTokenizer& face, const auto& own, const std::string& bytes) {
    EXPECT_EQ(face.encode(caption), own.encode(caption));
    EXPECT_EQ(face.encode(caption, 0.5, key), own.encode(caption, 0.5, key));
    EXPECT_EQ(face.decode(own.encode(caption)), own.decode(own.encode(caption)));
    EXPECT_EQ(face.vocab_size(), own.vocab_size());
    EXPECT_EQ(face.piece(300), own.piece(300));
    EXPECT_EQ(face.identity(), own.identity());
    EXPECT_EQ(face.model_bytes(), bytes);
    EXPECT_EQ(TextTokenizer::from_bytes(face.model_bytes()).identity(), own.identity());
  };
  compare(piece_model, piece_model, read_file(kFiles[0]));
  compare(bpe, bpe, read_file(kFiles[1]));
  EXPECT_EQ(TextTokenizer(piece_model).normalize("A  &amp;"), "a &amp;");
  EXPECT_EQ(TextTokenizer(bpe).normalize("A  &amp;"), "a &");
}

TEST(TextTokenizer, BadFilesAreNamed) {
  const testing::TempDirectory scratch("text-tokenizer");
  EXPECT_THROW(TextTokenizer::load(scratch / "none.model"), ConfigError);
  write_file(scratch / "bad.gz", "\x1F\x8B nothing");
  EXPECT_THAT(testing::message_of<CheckpointError>([&] { TextTokenizer::load(scratch / "bad.gz"); }),
              HasSubstr("bad.gz"));
  write_file(scratch / "bad.model", "nothing");
  EXPECT_THAT(testing::message_of<CheckpointError>([&] { TextTokenizer::load(scratch / "bad.model"); }),
              HasSubstr("bad.model"));
}

}  // namespace
}  // namespace dalle::text

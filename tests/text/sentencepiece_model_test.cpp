#include "dalle/text/sentencepiece_model.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <filesystem>

#include "dalle/core/error.h"
#include "dalle/core/files.h"

namespace dalle::text {
namespace {

std::string model_bytes() {
  return read_file(std::filesystem::path(DALLE_SOURCE_DIR) / "tests" / "golden" / "sentencepiece.model");
}

TEST(SentencePieceModel, HoldsWhatTheLibraryReads) {
  const auto model = parse_sentencepiece_model(model_bytes());
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model_bytes()).ok());
  ASSERT_EQ(static_cast<int>(model.pieces.size()), library.GetPieceSize());
  for (int id = 0; id < library.GetPieceSize(); ++id) {
    const auto& piece = model.pieces[static_cast<size_t>(id)];
    EXPECT_EQ(piece.text, library.IdToPiece(id));
    EXPECT_EQ(piece.score, library.GetScore(id));
    EXPECT_EQ(piece.type == PieceType::kByte, library.IsByte(id));
    EXPECT_EQ(piece.type == PieceType::kUnknown, library.IsUnknown(id));
  }
  EXPECT_TRUE(model.is_bpe);
  EXPECT_EQ(model.normalizer_name, "identity");
  EXPECT_FALSE(model.add_dummy_prefix);
  EXPECT_FALSE(model.remove_extra_whitespaces);
  EXPECT_TRUE(model.escape_whitespaces);
}

TEST(SentencePieceModel, DamageIsAnErrorAndNeverACrash) {
  const std::string good = model_bytes();
  EXPECT_THROW(parse_sentencepiece_model(good.substr(0, good.size() - 1)), CheckpointError);
  EXPECT_THROW(parse_sentencepiece_model("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F"), CheckpointError);
  for (size_t i = 0; i < 2000; ++i) {
    std::string damaged = good;
    damaged[i] = static_cast<char>(~damaged[i]);
    try {
      parse_sentencepiece_model(damaged);
    } catch (const CheckpointError&) {
    }
  }
}

}  // namespace
}  // namespace dalle::text

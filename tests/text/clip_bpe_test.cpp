// CLIP's byte-level BPE beside open_clip's ids (scripts/golden/clip_packages.py); scripts/parity/run.sh clip_packages compares
// 10,000 captions with the published vocabulary.
#include "dalle/text/clip_bpe.h"

#include <gmock/gmock.h>

#include <fstream>
#include <set>
#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/thrown_message.h"

namespace dalle::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string golden_file(const std::string& name) {
  return std::string(DALLE_SOURCE_DIR) + "/tests/golden/clip_bpe/" + name;
}

ClipBpe golden_bpe() { return ClipBpe::from_bytes(read_file(golden_file("vocabulary.txt.gz"))); }

std::string with_escapes(std::string text) {
  for (const auto& [from, to] : {std::pair("\\t", "\t"), std::pair("\\n", "\n")}) {
    for (size_t at; (at = text.find(from)) != std::string::npos;) text.replace(at, 2, to);
  }
  return text;
}

TEST(ClipBpe, IdsAreOpenClips) {
  const ClipBpe bpe = golden_bpe();
  std::ifstream file(golden_file("ids.tsv"));
  int count = 0, tokens = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const size_t tab = line.rfind('\t');
    std::vector<int64_t> expected;
    std::istringstream numbers(line.substr(tab + 1));
    for (int64_t id; numbers >> id;) expected.push_back(id);
    tokens += static_cast<int>(expected.size());
    EXPECT_EQ(bpe.encode(with_escapes(line.substr(0, tab))), expected) << line.substr(0, tab);
  }
  EXPECT_EQ(count, 98);
  EXPECT_GT(tokens, 1000);
}

TEST(ClipBpe, VocabularyIsBytesWordEndsAndMerges) {
  const ClipBpe bpe = golden_bpe();
  EXPECT_EQ(bpe.vocab_size(), 512 + 120);
  EXPECT_EQ(bpe.piece(0), "!");
  EXPECT_EQ(bpe.piece(256), "!</w>");
  EXPECT_EQ(bpe.piece(512), "la");
  EXPECT_EQ(bpe.piece(515), "flag</w>");
  EXPECT_THROW(bpe.piece(bpe.vocab_size()), DataError);
  EXPECT_THROW(bpe.piece(-1), DataError);
}

TEST(ClipBpe, DecodeSpellsTheCleanedCaption) {
  const ClipBpe bpe = golden_bpe();
  const auto again = [&](const char* caption) { return bpe.decode(bpe.encode(caption)); };
  EXPECT_EQ(again("A Flag of  Japan"), "a flag of japan");
  EXPECT_EQ(again("the dog's 12"), "the dog 's 1 2");
  EXPECT_EQ(again("熊 😀"), "熊 😀");
  EXPECT_EQ(bpe.decode(std::vector<int64_t>{100, -1, 99999}), "\uFFFD") << "half a character; ids of no piece";
}

TEST(ClipBpe, PlainAndPackedFilesAreTheSame) {
  const std::string plain = "#version: 0.2\na b\nab c</w>\n";
  const ClipBpe bpe = ClipBpe::from_bytes(plain);
  EXPECT_EQ(bpe.vocab_size(), 514);
  EXPECT_THAT(bpe.encode("abc ab"), ElementsAre(513, 64, 256 + 65));
  EXPECT_EQ(bpe.file_bytes(), plain);
  EXPECT_EQ(bpe.identity(), ClipBpe::from_bytes("other #version\na b\nab c</w>").identity());
  EXPECT_NE(bpe.identity(), ClipBpe::from_bytes("#version: 0.2\na b\n").identity());
}

TEST(ClipBpe, TheLowestRankMergesFirstEverywhere) {
  const ClipBpe bpe = ClipBpe::from_bytes("#version\nb c\na b\na a\naa aa\n");
  EXPECT_THAT(bpe.encode("abcd"), ElementsAre(64, 512, 256 + 67));  // a, bc, d</w>
  EXPECT_THAT(bpe.encode("aaaaaaX"), ElementsAre(515, 514, 256 + 87));
}

TEST(ClipBpe, DropoutIsAFunctionOfItsKeyAndSpellsTheSame) {
  const ClipBpe bpe = golden_bpe();
  const std::string caption = "flag of the united arab emirates";
  const auto plain = bpe.encode(caption);
  std::set<std::vector<int64_t>> seen;
  for (uint64_t i = 0; i < 20; ++i) {
    const RandomKey key = random_key(1, Purpose::kBpeDropout, i);
    const auto ids = bpe.encode(caption, 0.3, key);
    EXPECT_EQ(ids, bpe.encode(caption, 0.3, key));
    EXPECT_EQ(bpe.decode(ids), caption);
    seen.insert(ids);
  }
  EXPECT_GT(seen.size(), 10u);
  EXPECT_EQ(bpe.encode(caption, 0, random_key(1, Purpose::kBpeDropout)), plain);
  EXPECT_EQ(bpe.encode(caption, 1, random_key(1, Purpose::kBpeDropout)).size(), 32u - 5u) << "letters alone";
}

TEST(ClipBpe, AVeryLongWordTakesNoTime) {
  EXPECT_EQ(golden_bpe().decode(golden_bpe().encode(std::string(20'000, 'a'))), std::string(20'000, 'a'));
}

TEST(ClipBpe, DamagedVocabulariesAreRefused) {
  const auto refusal = [](const std::string& bytes) {
    return testing::message_of<CheckpointError>([&] { ClipBpe::from_bytes(bytes); });
  };
  const std::string packed = read_file(golden_file("vocabulary.txt.gz"));
  EXPECT_THAT(refusal(packed.substr(0, packed.size() / 2)), HasSubstr("whole gzip"));
  std::string bent = packed;
  bent[packed.size() / 2] = static_cast<char>(bent[packed.size() / 2] ^ 0x55);
  EXPECT_THAT(refusal(bent), HasSubstr("gzip"));
  EXPECT_THAT(refusal("nothing"), HasSubstr("#version"));
  EXPECT_THAT(refusal("#version\na b\nxy z\n"), HasSubstr("line 3"));
  EXPECT_THAT(refusal("#version\na\n"), HasSubstr("line 2"));
  EXPECT_THROW(golden_bpe().encode("\xC3"), DataError);
}

}  // namespace
}  // namespace dalle::text

#include "dalle/data/tar_source.h"

#include <archive.h>
#include <archive_entry.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "support/tar_files.h"
#include "support/temp_directory.h"

namespace dalle::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_tar;
using testing::TarFiles;
using testing::TempDirectory;

const TarFiles kThree{{"a/000.png", "first picture"},       {"a/000.txt", "one\ntwo\n"},
                      {"a/001.jpg", std::string(700, 'j')}, {"a/001.txt", "three"},
                      {"a/002.webp", "third picture"},      {"a/002.json", R"({"captions": ["four", "five"]})"}};

std::unique_ptr<Source> open_bytes(const TempDirectory& folder, const std::string& bytes, int64_t max_samples = 0) {
  write_file(folder / "shard.tar", bytes);
  return open_tar_source({folder / "shard.tar"}, max_samples);
}

std::vector<std::string> keys_of(const Source& source) {
  std::vector<std::string> keys;
  for (int64_t i = 0; i < source.size(); ++i) keys.push_back(source.read(i).key);
  return keys;
}

void expect_three(const Source& source) {
  ASSERT_EQ(source.size(), 3);
  EXPECT_THAT(keys_of(source), ElementsAre("a/000", "a/001", "a/002"));
  EXPECT_EQ(source.read(0).picture, "first picture");
  EXPECT_EQ(source.read(1).picture, std::string(700, 'j'));
  EXPECT_EQ(source.read(2).picture, "third picture");
  EXPECT_THAT(source.captions(0), ElementsAre("one", "two"));
  EXPECT_THAT(source.read(2).captions, ElementsAre("four", "five"));
}

/// The same files through libarchive: `format` "pax" or "gnutar", `gzip`: compressed.
std::string archive_by_library(const TempDirectory& folder, const TarFiles& files, const char* format, bool gzip) {
  archive* a = archive_write_new();
  if (gzip) archive_write_add_filter_gzip(a);
  archive_write_set_format_by_name(a, format);
  archive_write_open_filename(a, (folder / "made").c_str());
  for (const auto& [name, content] : files) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_size(entry, static_cast<la_int64_t>(content.size()));
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_write_header(a, entry);
    archive_write_data(a, content.data(), content.size());
    archive_entry_free(entry);
  }
  archive_write_close(a);
  archive_write_free(a);
  return read_file(folder / "made");
}

TEST(TarSource, ReadsPicturesAndCaptionsByKey) {
  const TempDirectory folder("tar");
  const auto source = open_bytes(folder, make_tar(kThree));
  expect_three(*source);
  EXPECT_EQ(source->report().num_samples, 3);
  EXPECT_TRUE(source->report().problems.empty());
  EXPECT_THAT(source->place(1), HasSubstr("shard.tar: a/001"));
}

TEST(TarSource, ReadsTheShippedPictures) {
  const std::filesystem::path emoji = std::filesystem::path(DALLE_SOURCE_DIR) / "data" / "emoji";
  const auto train = open_source({.path = emoji / "train.tar"});
  const auto validation = open_source({.path = emoji / "val.tar"});
  EXPECT_EQ(train->size(), 1230);
  EXPECT_EQ(validation->size(), 130);
  size_t num_captions = 0;
  for (int64_t i = 0; i < train->size(); ++i) {
    num_captions += train->captions(i).size();
    EXPECT_TRUE(train->read(i).picture.starts_with("\x89PNG")) << i;
  }
  EXPECT_EQ(num_captions, 3139u);
  EXPECT_TRUE(train->report().problems.empty());
}

TEST(TarSource, OtherTarDialectsAndCompression) {
  const TempDirectory folder("tar");
  TarFiles files = kThree;
  const std::string long_name = std::string(180, 'd') + "/" + std::string(120, 'n');
  files.push_back({long_name + ".png", "long picture"});
  files.push_back({long_name + ".txt", "long"});
  for (const char* format : {"pax", "gnutar"}) {
    for (const bool gzip : {false, true}) {
      const auto source = open_bytes(folder, archive_by_library(folder, files, format, gzip));
      ASSERT_EQ(source->size(), 4) << format << gzip;
      EXPECT_EQ(source->read(3).key, long_name);
      EXPECT_EQ(source->read(3).picture, "long picture");
      EXPECT_EQ(source->read(1).picture, std::string(700, 'j'));
    }
  }
  EXPECT_EQ(open_bytes(folder, make_tar(files))->read(3).picture, "long picture");
}

TEST(TarSource, UsesTheWholeEntriesOfAShardCutAnywhere) {
  const TempDirectory folder("tar");
  const std::string whole = make_tar(kThree);
  std::vector<size_t> ends;  // where the content of each entry ends
  for (size_t i = 0, start = 0; i < kThree.size(); ++i) {
    const size_t size = kThree[i].second.size();
    ends.push_back(start + 512 + size);
    start += 512 + (size + 511) / 512 * 512;
  }
  for (size_t size = 100; size < whole.size() - 1024; size += 101) {
    const int64_t usable = (size >= ends[1] ? 1 : 0) + (size >= ends[3] ? 1 : 0) + (size >= ends[5] ? 1 : 0);
    const std::string cut = whole.substr(0, size);
    if (usable == 0) {
      EXPECT_THROW(open_bytes(folder, cut), DataError) << size;
      continue;
    }
    const auto source = open_bytes(folder, cut);
    EXPECT_EQ(source->size(), usable) << size;
    EXPECT_FALSE(source->report().problems.empty()) << size;
    EXPECT_EQ(source->read(usable - 1).key, str("a/00", usable - 1));
  }
}

TEST(TarSource, NamesTheEntryThatIsCutShort) {
  const TempDirectory folder("tar");
  const auto source = open_bytes(folder, make_tar(kThree).substr(0, 2048 + 512 + 300));
  EXPECT_EQ(source->size(), 1);
  EXPECT_EQ(source->report().num_cut_short, 1);
  EXPECT_EQ(source->report().num_without_caption, 0);  // not counted twice
  EXPECT_THAT(source->report().problems.front(),
              HasSubstr("shard.tar: a/001: a/001.jpg is cut short, 400 bytes are missing"));
}

TEST(TarSource, ACompressedShardCutShortKeepsItsWholeEntries) {
  const TempDirectory folder("tar");
  TarFiles files;
  for (int i = 0; i < 50; ++i) {
    std::string noise;  // does not compress, so that the cut falls between entries
    RandomStream stream(random_key(1, Purpose::kShuffle, static_cast<uint64_t>(i)));
    for (int k = 0; k < 5000; ++k) noise += static_cast<char>(stream.integer(0, 255));
    files.push_back({str(i, ".png"), noise});
    files.push_back({str(i, ".txt"), "caption"});
  }
  const std::string whole = archive_by_library(folder, files, "pax", true);
  const auto source = open_bytes(folder, whole.substr(0, whole.size() / 2));
  EXPECT_GT(source->size(), 15);
  EXPECT_LT(source->size(), 30);
  EXPECT_EQ(source->read(3).picture, files[6].second);
  EXPECT_FALSE(source->report().problems.empty());
}

TEST(TarSource, TellsWhenTheEndMarkerIsMissing) {
  const TempDirectory folder("tar");
  const auto source = open_bytes(folder, make_tar(kThree, false));
  EXPECT_EQ(source->size(), 3);
  EXPECT_THAT(source->report().problems, ElementsAre(HasSubstr("end-of-archive marker")));
}

TEST(TarSource, CountsSamplesThatLackAPart) {
  const TempDirectory folder("tar");
  const auto source = open_bytes(folder, make_tar({{"a.png", "p"},
                                                   {"b.txt", "t"},
                                                   {"c.png", "p"},
                                                   {"c.txt", " \n"},
                                                   {"d.png", "p"},
                                                   {"d.txt", "ok"},
                                                   {"d.jpg", "again"},
                                                   {"e.json", "{}"},
                                                   {"readme", "x"},
                                                   {".e.png", "x"}}));
  EXPECT_THAT(keys_of(*source), ElementsAre("d"));
  EXPECT_EQ(source->read(0).picture, "p");
  EXPECT_EQ(source->report().num_without_caption, 2);
  EXPECT_EQ(source->report().num_without_picture, 2);
  EXPECT_EQ(source->report().num_duplicates, 1);
}

TEST(TarSource, SkipsCaptionsThatAreNotUtf8AndSaysWhere) {
  const TempDirectory folder("tar");
  const auto source = open_bytes(
      folder,
      make_tar(
          {{"a.png", "p"}, {"a.txt", "caf\xE9"}, {"b.png", "p"}, {"b.txt", "café"}, {"c.png", "p"}, {"c.json", "{"}}));
  EXPECT_THAT(keys_of(*source), ElementsAre("b"));
  EXPECT_EQ(source->report().num_bad_captions, 2);
  EXPECT_THAT(source->report().problems[0], HasSubstr("shard.tar: a: caption file: not UTF-8 at byte 3"));
}

TEST(TarSource, TextCaptionsWinOverJsonMetadata) {
  const TempDirectory folder("tar");
  const auto source =
      open_bytes(folder, make_tar({{"./a.json", R"({"caption": "no"})"}, {"./a.JPG", "p"}, {"./a.txt", "yes"}}));
  EXPECT_THAT(keys_of(*source), ElementsAre("a"));
  EXPECT_THAT(source->captions(0), ElementsAre("yes"));
}

TEST(TarSource, KeysEndAtTheFirstDotOfTheName) {
  const TempDirectory folder("tar");
  const auto source =
      open_bytes(folder, make_tar({{"v1.2/x.png", "p"}, {"v1.2/x.txt", "t"}, {"v1.2/x.seg.png", "other"}}));
  EXPECT_THAT(keys_of(*source), ElementsAre("v1.2/x"));
  EXPECT_EQ(source->read(0).picture, "p");
}

TEST(TarSource, NamesOnlyTheFirstProblemsOfAKind) {
  const TempDirectory folder("tar");
  TarFiles files{{"ok.png", "p"}, {"ok.txt", "t"}};
  for (int i = 0; i < 50; ++i) files.push_back({str("x", i, ".png"), "p"});
  const auto source = open_bytes(folder, make_tar(files));
  EXPECT_EQ(source->report().num_without_caption, 50);
  EXPECT_EQ(source->report().problems.size(), 20u);
}

TEST(TarSource, TakesTheFirstSamplesOnly) {
  const TempDirectory folder("tar");
  EXPECT_THAT(keys_of(*open_bytes(folder, make_tar(kThree), 2)), ElementsAre("a/000", "a/001"));
  EXPECT_EQ(open_bytes(folder, make_tar(kThree), 10)->size(), 3);
}

TEST(TarSource, RefusesShardsWithoutASample) {
  const TempDirectory folder("tar");
  EXPECT_THROW(open_bytes(folder, ""), DataError);
  EXPECT_THROW(open_bytes(folder, "this is not a tar file"), DataError);
  EXPECT_THROW(open_bytes(folder, make_tar({})), DataError);
  EXPECT_THROW(open_bytes(folder, make_tar({{"a.txt", "x"}})), DataError);
}

TEST(TarSource, AShardThatShrinksLaterIsAFileError) {
  const TempDirectory folder("tar");
  const auto source = open_bytes(folder, make_tar(kThree));
  std::filesystem::resize_file(folder / "shard.tar", 2048);
  EXPECT_EQ(source->read(0).picture, "first picture");
  EXPECT_THROW(source->read(1), FileError);
}

}  // namespace
}  // namespace dalle::data

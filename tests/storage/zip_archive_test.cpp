#include "dalle/storage/zip_archive.h"

#include <gmock/gmock.h>

#include <cstring>

#include "storage/scratch.h"

namespace dalle::storage {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kAnySize = 1 << 20;

template <class T>
std::string bytes_of(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string u16(uint64_t value) { return bytes_of(static_cast<uint16_t>(value)); }
std::string u32(uint64_t value) { return bytes_of(static_cast<uint32_t>(value)); }
std::string u64(uint64_t value) { return bytes_of(value); }

/// An archive of one stored member written field by field, as other programs write it: no zip64, no alignment. Tests bend
/// single fields.
struct RawZip {
  std::string name = "a/b.txt", header_name = "a/b.txt", data = "hello", comment, extra, between;
  uint64_t flags = 0, method = 0, checksum = 0x3610a686, stored_size = 5, size = 5, header_offset = 0;
  uint64_t entries = 1, disk = 0;
  int64_t directory_offset_error = 0, directory_size_error = 0;
  bool two_entries = false;
  uint32_t header_signature = 0x04034b50;

  std::string entry() const {
    return u32(0x02014b50) + u16(20) + u16(20) + u16(flags) + u16(method) + u32(0) + u32(checksum) + u32(stored_size) +
           u32(size) + u16(name.size()) + u16(extra.size()) + u16(0) + u16(0) + u16(0) + u32(0) + u32(header_offset) +
           name + extra;
  }
  std::string text() const {
    std::string out = u32(header_signature) + u16(20) + u16(flags) + u16(method) + u32(0) + u32(checksum) +
                      u32(stored_size) + u32(size) + u16(header_name.size()) + u16(0) + header_name + data;
    const auto offset = static_cast<uint64_t>(static_cast<int64_t>(out.size()) + directory_offset_error);
    const std::string directory = entry() + (two_entries ? entry() : "");
    const auto directory_size = static_cast<uint64_t>(static_cast<int64_t>(directory.size()) + directory_size_error);
    return out + directory + between + u32(0x06054b50) + u16(disk) + u16(0) + u16(entries) + u16(entries) +
           u32(directory_size) + u32(offset) + u16(comment.size()) + comment;
  }
};

/// Reads everything, and checks that no more was there to read than the file holds.
void read_all(const fs::path& path) {
  const ZipReader reader(path);
  uint64_t total = 0;
  for (const auto& member : reader.members()) total += reader.read_text(member, kAnySize).size();
  EXPECT_LE(total, fs::file_size(path));
}

TEST(ZipArchive, RoundTripKeepsNamesOrderAndBytes) {
  const Scratch scratch("zip-round");
  const std::vector<std::pair<std::string, std::string>> members = {{"archive/data.pkl", "some bytes"},
                                                                    {"archive/data/0", std::string(1000, '\x01')},
                                                                    {"archive/empty", ""},
                                                                    {"z", "\n"}};
  ZipWriter writer(scratch / "x.zip");
  for (const auto& [name, content] : members) writer.add(name, content);
  EXPECT_FALSE(fs::exists(scratch / "x.zip"));
  writer.commit();
  const ZipReader reader(scratch / "x.zip");
  ASSERT_EQ(reader.members().size(), members.size());
  for (size_t i = 0; i < members.size(); ++i) {
    const ZipMember& member = reader.members()[i];
    EXPECT_EQ(member.name, members[i].first);
    EXPECT_EQ(reader.read_text(member, kAnySize), members[i].second);
    EXPECT_EQ(member.data_offset % 64, 0u);
    EXPECT_EQ(reader.find(member.name), &member);
  }
  EXPECT_EQ(reader.find("archive"), nullptr);
  EXPECT_THROW(reader.read_text(reader.members()[1], 999), CheckpointError);
}

TEST(ZipArchive, AnArchiveOfNothingIsOne) {
  const Scratch scratch("zip-none");
  ZipWriter(scratch / "x.zip").commit();
  EXPECT_TRUE(ZipReader(scratch / "x.zip").members().empty());
}

TEST(ZipArchive, WhatIsNotCommittedLeavesNothing) {
  const Scratch scratch("zip-abandoned");
  ZipWriter(scratch / "x.zip").add("a", "b");
  EXPECT_TRUE(fs::is_empty(scratch.path()));
  EXPECT_THROW(ZipWriter(scratch / "x.zip").add("", "b"), c10::ValueError);
}

TEST(ZipArchive, ReadsWhatPyTorchWrote) {
  const ZipReader reader(fs::path(DALLE_SOURCE_DIR) / "tests/golden/torch/state.pt");
  for (const char* name : {"state/data.pkl", "state/byteorder", "state/version", "state/data/0"})
    EXPECT_NE(reader.find(name), nullptr) << name;
  EXPECT_EQ(reader.read_text(*reader.find("state/byteorder"), 100), "little");
  for (const auto& member : reader.members()) reader.read_text(member, kAnySize);  // checksums
}

TEST(ZipArchive, ReadsArchivesOfOtherPrograms) {
  const Scratch scratch("zip-others");
  RawZip zip;
  zip.comment = "a comment with PK\x05\x06 in it, long enough for a record to follow";
  overwrite(scratch / "x.zip", zip.text());
  const ZipReader reader(scratch / "x.zip");
  EXPECT_EQ(reader.read_text(*reader.find("a/b.txt"), 5), "hello");
  zip.extra =
      u16(0x7075) + u16(2) + "ab" + u16(1) + u16(24) + u64(5) + u64(5) + u64(0);  // another field before zip64's
  zip.size = zip.stored_size = zip.header_offset = 0xFFFFFFFF;
  overwrite(scratch / "y.zip", zip.text());
  const ZipReader large(scratch / "y.zip");
  EXPECT_EQ(large.read_text(large.members()[0], 5), "hello");
}

TEST(ZipArchive, AChecksumOfZeroIsNone) {
  const Scratch scratch("zip-no-checksum");
  RawZip zip;
  zip.checksum = 0;
  overwrite(scratch / "x.zip", zip.text());
  EXPECT_NO_THROW(read_all(scratch / "x.zip"));
}

struct Bent {
  const char* says;
  std::function<void(RawZip&)> bend;
};

TEST(ZipArchive, BentFieldsAreNamed) {
  const Scratch scratch("zip-bent");
  const Bent cases[] = {
      {"checksum", [](RawZip& z) { z.data = "jello"; }},
      {"encryption", [](RawZip& z) { z.flags = 1; }},
      {"compressed", [](RawZip& z) { z.method = 8; }},
      {"stored bytes", [](RawZip& z) { z.size = 6; }},
      {"stored bytes", [](RawZip& z) { z.size = 0xFFFFFFF0; }},
      {"bytes there", [](RawZip& z) { z.stored_size = z.size = 6; }},
      {"bytes there", [](RawZip& z) { z.stored_size = z.size = 0xFFFFFFF0; }},
      {"its header", [](RawZip& z) { z.header_offset = 1; }},
      {"a header before", [](RawZip& z) { z.header_offset = 40; }},
      {"a header before", [](RawZip& z) { z.header_offset = 0xFFFFFFF0; }},
      {"its header", [](RawZip& z) { z.header_name = "a/c.txt"; }},
      {"its header", [](RawZip& z) { z.header_name = "a/b.txt.more"; }},
      {"its header", [](RawZip& z) { z.header_signature = 0x04034b51; }},
      {"its header", [](RawZip& z) { z.name += std::string(60000, 'x'); }},
      {"a directory that ends", [](RawZip& z) { z.directory_offset_error = 1; }},
      {"a directory that ends", [](RawZip& z) { z.directory_offset_error = -1; }},
      {"a directory that ends", [](RawZip& z) { z.directory_size_error = 1000; }},
      {"a directory that ends", [](RawZip& z) { z.between = "gap"; }},
      {"a directory that ends", [](RawZip& z) { z.entries = 0xFFFF; }},
      {"entries in the directory", [](RawZip& z) { z.entries = 0; }},
      {"a part of several", [](RawZip& z) { z.disk = 1; }},
      {"shorter field",
       [](RawZip& z) {
         z.size = z.stored_size = 0xFFFFFFFF;
         z.extra = u16(1) + u16(8) + u64(5);
       }},
      {"bytes there",
       [](RawZip& z) {
         z.size = z.stored_size = 0xFFFFFFFF;
         z.extra = u16(1) + u16(16) + u64(UINT64_MAX - 8) + u64(UINT64_MAX - 8);
       }},
      {"a header before",
       [](RawZip& z) {
         z.header_offset = 0xFFFFFFFF;
         z.extra = u16(1) + u16(8) + u64(UINT64_MAX);
       }},
      {"bytes of its own",
       [](RawZip& z) {
         z.two_entries = true;
         z.entries = 2;
       }},
  };
  for (const auto& [says, bend] : cases) {
    RawZip zip;
    bend(zip);
    overwrite(scratch / "x.zip", zip.text());
    const std::string message = message_of<CheckpointError>([&] { read_all(scratch / "x.zip"); });
    EXPECT_THAT(message, HasSubstr(says));
    EXPECT_THAT(message, HasSubstr((scratch / "x.zip").string()));
  }
}

TEST(ZipArchive, EveryTruncationIsAnError) {
  const Scratch scratch("zip-cut");
  const std::string whole = read_file(fs::path(DALLE_SOURCE_DIR) / "tests/golden/torch/no_checksums.pt");
  for (size_t length = 0; length < whole.size(); ++length) {
    overwrite(scratch / "x.pt", whole.substr(0, length));
    EXPECT_THROW(ZipReader(scratch / "x.pt"), CheckpointError) << length;
  }
  overwrite(scratch / "x.pt", whole + "x");
  EXPECT_THROW(ZipReader(scratch / "x.pt"), CheckpointError);
}

TEST(ZipArchive, NoFlippedByteCrashesOrYieldsMoreThanTheFileHas) {
  const Scratch scratch("zip-flip");
  const std::string whole = read_file(fs::path(DALLE_SOURCE_DIR) / "tests/golden/torch/no_checksums.pt");
  size_t refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      overwrite(scratch / "x.pt", damaged);
      try {
        read_all(scratch / "x.pt");  // a flip in data, dates or padding cannot be noticed without a checksum
      } catch (const CheckpointError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 500u);
}

TEST(ZipArchive, FoldersAndMissingFilesAreFileErrors) {
  const Scratch scratch("zip-missing");
  EXPECT_THROW(ZipReader(scratch / "none.zip"), FileError);
  EXPECT_THROW(ZipReader(scratch.path()), FileError);
}

}  // namespace
}  // namespace dalle::storage

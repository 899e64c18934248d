#include "dalle/storage/manifest.h"

#include "dalle/core/hash.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

TEST(Manifest, RecordsSizeAndChecksumOfEachFile) {
  const Scratch scratch("manifest-round");
  write_file(scratch / "a.txt", "alpha");
  write_file(scratch / "empty", "");
  write_manifest(scratch.path(), "test-format", 3, {"a.txt", "empty"});
  const Manifest manifest = read_manifest(scratch.path(), "test-format", 3);
  ASSERT_EQ(manifest.files.size(), 2u);
  Hasher hasher;
  hasher.update("alpha");
  EXPECT_EQ(manifest.find("a.txt")->bytes, 5u);
  EXPECT_EQ(manifest.find("a.txt")->checksum, hasher.hex());
  EXPECT_EQ(manifest.find("other"), nullptr);
  for (const auto& entry : manifest.files) EXPECT_NO_THROW(verify_checksum(scratch.path(), entry));
}

TEST(Manifest, ChecksumOfALongFileIsThatOfItsWhole) {
  const Scratch scratch("manifest-long");
  std::string content(9'000'001, 'x');
  for (size_t i = 0; i < content.size(); i += 97) content[i] = static_cast<char>(i);
  write_file(scratch / "long", content);
  Hasher hasher;
  hasher.update(content);
  EXPECT_EQ(file_checksum(scratch / "long"), hasher.hex());
}

TEST(Manifest, RefusesOtherFormatsVersionsAndNames) {
  const Scratch scratch("manifest-refuse");
  write_file(scratch / "a", "alpha");
  write_manifest(scratch.path(), "test-format", 3, {"a"});
  const std::string version = message_of<CheckpointError>([&] { read_manifest(scratch.path(), "test-format", 2); });
  EXPECT_NE(version.find("version 2"), std::string::npos) << version;
  EXPECT_NE(version.find("got 3"), std::string::npos) << version;
  EXPECT_THROW(read_manifest(scratch.path(), "other", 3), CheckpointError);
  for (const char* name : {"../a", "/etc/passwd", ".", "..", "", "a/b"}) {
    overwrite(scratch / kManifestName, dalle::str(R"({"format":"test-format","format_version":3,"files":{")", name,
                                                  R"(":{"bytes":5,"xxh3_128":"00"}}})"));
    const std::string message = message_of<CheckpointError>([&] { read_manifest(scratch.path(), "test-format", 3); });
    EXPECT_NE(message.find("plain file names"), std::string::npos) << message;
  }
}

TEST(Manifest, RefusesWrongTypes) {
  const Scratch scratch("manifest-types");
  write_file(scratch / "a", "alpha");
  for (const char* text :
       {"", "[]", "{}", R"({"format":"f"})", R"({"format":"f","format_version":"1","files":{}})",
        R"({"format":"f","format_version":1,"files":[]})", R"({"format":"f","format_version":1,"files":{"a":5}})",
        R"({"format":"f","format_version":1,"files":{"a":{"bytes":-5,"xxh3_128":"0"}}})",
        R"({"format":"f","format_version":1,"files":{"a":{"bytes":5.0,"xxh3_128":"0"}}})",
        R"({"format":"f","format_version":1,"files":{"a":{"bytes":18446744073709551615,"xxh3_128":"0"}}})",
        R"({"format":"f","format_version":1,"files":{"a":{"bytes":5}}})"}) {
    overwrite(scratch / kManifestName, text);
    EXPECT_THROW(read_manifest(scratch.path(), "f", 1), CheckpointError) << text;
  }
}

}  // namespace
}  // namespace dalle::storage

#include "dalle/storage/safetensors.h"

#include <cstring>

#include "storage/every_type.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

const std::map<std::string, std::string> kMetadata = {{"who", "safetensors package"},
                                                      {"text", "Grüße, 世界 \"quoted\"\n"}};

/// A file with any header text over any data.
void write_raw(const fs::path& path, const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string content(reinterpret_cast<const char*>(&length), 8);
  overwrite(path, content + header + data);
}

TEST(Safetensors, RoundTripKeepsNamesOrderTypesAndBits) {
  const Scratch scratch("safetensors-round");
  write_safetensors(scratch / "x.safetensors", {every_type(), kMetadata});
  const SafetensorsFile got = read_safetensors(scratch / "x.safetensors");
  expect_same(got.tensors, every_type());
  EXPECT_EQ(got.metadata, kMetadata);
  const SafetensorsHeader header = read_safetensors_header(scratch / "x.safetensors");
  EXPECT_EQ(header.data_start % 8, 0u);
  EXPECT_EQ(header.tensors[2].name, "float32");
  EXPECT_EQ(header.tensors[2].shape, (std::vector<int64_t>{2, 3, 4}));
}

TEST(Safetensors, ReadsWhatThePythonPackageWrote) {
  const SafetensorsFile got =
      read_safetensors(fs::path(DALLE_SOURCE_DIR) / "tests" / "golden" / "safetensors_file.safetensors");
  EXPECT_EQ(got.metadata, kMetadata);
  const auto expected = every_type();
  ASSERT_EQ(got.tensors.size(), expected.size());
  for (const auto& [name, value] : expected) {
    const Tensor* tensor = find_tensor(got.tensors, name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_TRUE(testing::bitwise_equal(*tensor, value)) << name;
  }
}

TEST(Safetensors, StridedAndChannelsLastTensorsAreStoredInRows) {
  const Scratch scratch("safetensors-strides");
  const Tensor x = random_tensor(1, {2, 3, 4, 5});
  write_safetensors(scratch / "x.safetensors", {{{"nhwc", x.contiguous(at::MemoryFormat::ChannelsLast)},
                                                 {"slice", x.select(1, 1).transpose(0, 2)},
                                                 {"grad", x.clone().set_requires_grad(true)}},
                                                {}});
  const auto got = read_safetensors(scratch / "x.safetensors").tensors;
  EXPECT_TRUE(got[0].tensor.is_contiguous());
  EXPECT_TRUE(testing::bitwise_equal(got[0].tensor, x));
  EXPECT_TRUE(testing::bitwise_equal(got[1].tensor, x.select(1, 1).transpose(0, 2)));
  EXPECT_TRUE(testing::bitwise_equal(got[2].tensor, x));
  EXPECT_FALSE(got[2].tensor.requires_grad());
}

TEST(Safetensors, WriterRefusesWhatItCannotKeep) {
  const Scratch scratch("safetensors-refuse");
  const Tensor x = at::zeros({2});
  const auto path = scratch / "x.safetensors";
  EXPECT_THROW(write_safetensors(path, {{{"a", x}, {"a", x}}, {}}), c10::ValueError);
  EXPECT_THROW(write_safetensors(path, {{{"__metadata__", x}}, {}}), c10::ValueError);
  EXPECT_THROW(write_safetensors(path, {{{"a", Tensor()}}, {}}), c10::ValueError);
  EXPECT_THROW(write_safetensors(path, {{{"a", at::zeros({2}, at::kComplexFloat)}}, {}}), c10::ValueError);
  EXPECT_THROW(write_safetensors(path, {{{"a", x}}, {{"k", "\xff\xfe"}}}), CheckpointError);
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const Scratch scratch("safetensors-cut");
  const auto path = scratch / "x.safetensors";
  write_safetensors(path, {{{"a", random_tensor(1, {3, 5})}, {"b", random_tensor(2, {4})}}, {{"k", "v"}}});
  const std::string whole = read_file(path);
  for (size_t length = 0; length < whole.size(); ++length) {
    overwrite(path, whole.substr(0, length));
    EXPECT_THROW(read_safetensors(path), CheckpointError) << length;
  }
  overwrite(path, whole + "x");
  EXPECT_THROW(read_safetensors(path), CheckpointError);
  overwrite(path, whole);
  EXPECT_NO_THROW(read_safetensors(path));
}

TEST(Safetensors, NoFlippedHeaderByteCrashesOrYieldsOtherSizes) {
  const Scratch scratch("safetensors-flip");
  const auto path = scratch / "x.safetensors";
  write_safetensors(path, {{{"a", random_tensor(1, {3, 5})}, {"b", at::ones({4}, at::kBool)}}, {}});
  const std::string whole = read_file(path);
  const uint64_t header_size = read_safetensors_header(path).data_start;
  int refused = 0;
  for (uint64_t i = 0; i < header_size; ++i) {
    for (const int flip : {0x01, 0x02, 0x10, 0x80, 0xff}) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      overwrite(path, damaged);
      try {
        // A flip inside a name, or 3x5 to another shape of 15, cannot be noticed here (checksums notice it).
        const auto got = read_safetensors(path);
        ASSERT_EQ(got.tensors.size(), 2u);
        EXPECT_EQ(got.tensors[0].tensor.nbytes() + got.tensors[1].tensor.nbytes(), 64u);
      } catch (const CheckpointError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, static_cast<int>(header_size) * 3);
}

struct BadHeader {
  const char* header;
  const char* says;  // part of the message
};

TEST(Safetensors, BadHeadersAreNamed) {
  const Scratch scratch("safetensors-bad");
  const auto path = scratch / "x.safetensors";
  const BadHeader cases[] = {
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
       "each key once"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       "from byte 8"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       "from byte 4"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "trailing bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", "from byte 0"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[12,0]}})", "within the 12 data bytes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", "within the 12 data bytes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,12]}})", "16 bytes for F32"},
      {R"({"a":{"dtype":"F32","shape":[-3],"data_offsets":[0,12]}})", "integers >= 0"},
      {R"({"a":{"dtype":"F32","shape":[3.0],"data_offsets":[0,12]}})", "integers >= 0"},
      {R"({"a":{"dtype":"F32","shape":["3"],"data_offsets":[0,12]}})", "integers >= 0"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,12]}})", "integers >= 0"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,3],"data_offsets":[0,12]}})", "below 2^63"},
      {R"({"a":{"dtype":"U8","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})", "below 2^63"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,3],"data_offsets":[0,12]}})", "at most 16"},
      {R"({"a":{"dtype":"F8_E4M3","shape":[12],"data_offsets":[0,12]}})", "F8_E4M3"},
      {R"({"a":{"dtype":7,"shape":[12],"data_offsets":[0,12]}})", "string in 'dtype'"},
      {R"({"a":{"shape":[12],"data_offsets":[0,12]}})", "'dtype'"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0]}})", "two integers"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[-4,8]}})", "two integers"},
      {R"({"a":[1,2]})", "JSON object"},
      {R"({"a":{"dtype":"BOOL","shape":[12],"data_offsets":[0,12]}})", "bytes 0 and 1"},
      {R"({"__metadata__":{"k":3},"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "string in 'k'"},
      {R"([1,2])", "JSON object"},
      {R"({"a":)", "valid JSON"},
      {"{\"\xff\":{}}", "valid JSON"},
      {R"({"a":[[[[[[[[[1]]]]]]]]]})", "levels"},
  };
  for (const auto& [header, says] : cases) {
    write_raw(path, header, "abcdefghijkl");
    const std::string message = message_of<CheckpointError>([&] { read_safetensors(path); });
    EXPECT_NE(message.find(says), std::string::npos) << header << "\n" << message;
    EXPECT_NE(message.find(path.string()), std::string::npos) << message;
  }
}

TEST(Safetensors, HugeHeaderLengthIsRefusedBeforeAllocation) {
  const Scratch scratch("safetensors-huge");
  const auto path = scratch / "x.safetensors";
  for (const uint64_t length : {uint64_t{9}, uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 7}) {
    overwrite(path, std::string(reinterpret_cast<const char*>(&length), 8) + "{}");
    EXPECT_THROW(read_safetensors(path), CheckpointError) << length;
  }
}

TEST(Safetensors, MissingFileAndFolderAreFileErrors) {
  const Scratch scratch("safetensors-missing");
  EXPECT_THROW(read_safetensors(scratch / "none.safetensors"), FileError);
  EXPECT_THROW(read_safetensors(scratch.path()), FileError);
}

}  // namespace
}  // namespace dalle::storage

#include "dalle/training/tensorboard.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/data/image_codec.h"
#include "dalle/training/metrics.h"
#include "support/temp_directory.h"

namespace dalle::training {
namespace {

// A reader of its own for what the writer writes: frames, then protobuf's wire format by field number.

uint64_t read_integer(std::string_view bytes, size_t at, int size) {
  uint64_t value = 0;
  for (int i = size - 1; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes.at(at + static_cast<size_t>(i)));
  return value;
}

// Bit by bit, with the other bit order than the table: the polynomial 0x1EDC6F41 on reflected bytes.
uint32_t slow_crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char byte : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t in = static_cast<uint8_t>(byte) >> bit & 1;
      const uint32_t out = crc >> 31;
      crc = crc << 1 ^ (in ^ out ? 0x1EDC6F41u : 0u);
    }
  }
  uint32_t reflected = 0;
  for (int bit = 0; bit < 32; ++bit) reflected |= (crc >> bit & 1) << (31 - bit);
  return ~reflected;
}

uint32_t unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xA282EAD8u;
  return rotated >> 17 | rotated << 15;
}

std::vector<std::string> read_frames(const std::string& file) {
  std::vector<std::string> payloads;
  for (size_t at = 0; at < file.size();) {
    const uint64_t length = read_integer(file, at, 8);
    EXPECT_EQ(unmask(static_cast<uint32_t>(read_integer(file, at + 8, 4))), slow_crc32c(file.substr(at, 8)));
    payloads.push_back(file.substr(at + 12, length));
    EXPECT_EQ(payloads.back().size(), length);
    EXPECT_EQ(unmask(static_cast<uint32_t>(read_integer(file, at + 12 + length, 4))), slow_crc32c(payloads.back()));
    at += length + 16;
  }
  return payloads;
}

// Field number -> raw contents, in order: numbers as 8 little-endian bytes, messages and strings as they are.
using Fields = std::multimap<int, std::string>;

uint64_t read_varint(std::string_view bytes, size_t& at) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<uint8_t>(bytes.at(at++));
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
}

Fields parse_message(const std::string& bytes) {
  Fields fields;
  for (size_t at = 0; at < bytes.size();) {
    const uint64_t key = read_varint(bytes, at);
    const int number = static_cast<int>(key >> 3);
    const int kind = static_cast<int>(key & 7);
    std::string content;
    if (kind == 0) {
      const uint64_t value = read_varint(bytes, at);
      content.assign(reinterpret_cast<const char*>(&value), 8);
    } else {
      const size_t size = kind == 1 ? 8 : kind == 5 ? 4 : read_varint(bytes, at);
      content = bytes.substr(at, size);
      at += size;
    }
    fields.emplace(number, content);
  }
  return fields;
}

std::string field(const Fields& fields, int number) {
  EXPECT_EQ(fields.count(number), 1u) << "field " << number;
  return fields.count(number) == 1 ? fields.find(number)->second : std::string(8, '\0');
}

template <class T>
T as(const std::string& content) {
  T value{};
  std::memcpy(&value, content.data(), std::min(sizeof value, content.size()));
  return value;
}

std::vector<Fields> read_events(const std::filesystem::path& file) {
  std::vector<Fields> events;
  for (const std::string& payload : read_frames(read_file(file))) events.push_back(parse_message(payload));
  return events;
}

std::vector<Fields> summary_values(const Fields& event) {
  std::vector<Fields> values;
  const Fields summary = parse_message(field(event, 5));
  for (const auto& [number, content] : summary) {
    EXPECT_EQ(number, 1);
    values.push_back(parse_message(content));
  }
  return values;
}

TEST(TensorBoard, ChecksumMatchesPublishedValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
  EXPECT_EQ(slow_crc32c("123456789"), 0xE3069283u);
}

TEST(TensorBoard, FirstRecordNamesTheVersion) {
  const testing::TempDirectory scratch("tb-version");
  const TensorBoardWriter writer(scratch.path());
  EXPECT_TRUE(writer.file().filename().string().starts_with("events.out.tfevents."));
  const auto events = read_events(writer.file());
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(field(events[0], 3), "brain.Event:2");
  EXPECT_GT(as<double>(field(events[0], 1)), 1.6e9);
}

TEST(TensorBoard, ScalarsKeepTagStepAndValue) {
  const testing::TempDirectory scratch("tb-scalars");
  TensorBoardWriter writer(scratch.path());
  writer.scalars(300, {{"train/loss", 0.25}, {"train/zero", 0}, {"train/bad", std::nan("")}});
  const auto events = read_events(writer.file());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(as<int64_t>(field(events[1], 2)), 300);
  const auto values = summary_values(events[1]);
  ASSERT_EQ(values.size(), 3u);
  EXPECT_EQ(field(values[0], 1), "train/loss");
  EXPECT_EQ(as<float>(field(values[0], 2)), 0.25f);
  EXPECT_EQ(as<float>(field(values[1], 2)), 0.0f) << "zero is written, not left out";
  EXPECT_TRUE(std::isnan(as<float>(field(values[2], 2))));
}

TEST(TensorBoard, PicturesAreStoredAsPng) {
  const testing::TempDirectory scratch("tb-image");
  TensorBoardWriter writer(scratch.path());
  const Tensor picture = at::randint(0, 256, {6, 9, 3}, at::kByte);
  writer.image(7, "samples", picture);
  const auto values = summary_values(read_events(writer.file()).at(1));
  EXPECT_EQ(field(values.at(0), 1), "samples");
  const Fields image = parse_message(field(values.at(0), 4));
  EXPECT_EQ(as<int64_t>(field(image, 1)), 6);
  EXPECT_EQ(as<int64_t>(field(image, 2)), 9);
  EXPECT_EQ(as<int64_t>(field(image, 3)), 3);
  EXPECT_TRUE(at::equal(data::decode_picture(field(image, 4)), picture));
}

TEST(TensorBoard, AResumedRunSaysWhereItGoesOn) {
  const testing::TempDirectory scratch("tb-resume");
  const TensorBoardWriter first(scratch.path());
  const TensorBoardWriter second(scratch.path(), 40);
  EXPECT_NE(first.file(), second.file());
  const auto events = read_events(second.file());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(as<int64_t>(field(events[1], 2)), 41);
  EXPECT_EQ(as<int64_t>(field(parse_message(field(events[1], 7)), 1)), 1);
}

TEST(TensorBoard, MetricsAreTaggedByPhase) {
  const testing::TempDirectory scratch("tb-metrics");
  TensorBoardWriter writer(scratch.path());
  MetricsWriter(scratch / "metrics.jsonl", &writer).log(3, "validation", {{"psnr", 19.5}});
  const auto values = summary_values(read_events(writer.file()).at(1));
  EXPECT_EQ(field(values.at(0), 1), "validation/psnr");
  EXPECT_EQ(as<float>(field(values.at(0), 2)), 19.5f);
}

TEST(TensorBoard, AMissingDirectoryIsAnError) {
  EXPECT_THROW(TensorBoardWriter("/nonexistent/tensorboard"), FileError);
}

}  // namespace
}  // namespace dalle::training

#include "dalle/training/event_record.h"

#include <bit>

namespace dalle::training {
namespace {

// Protocol Buffers' wire format, as far as events need it. Not the library: SentencePiece exports a protobuf of its own,
// and two of them in one process replace each other's functions.
class Message {
 public:
  Message& integer(int field, int64_t value) {
    tag(field, 0);
    varint(static_cast<uint64_t>(value));
    return *this;
  }
  Message& fixed64(int field, double value) {
    tag(field, 1);
    little_endian(std::bit_cast<uint64_t>(value), 8);
    return *this;
  }
  Message& fixed32(int field, float value) {
    tag(field, 5);
    little_endian(std::bit_cast<uint32_t>(value), 4);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    tag(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, int wire_type) { varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  void little_endian(uint64_t value, int num_bytes) {
    for (int i = 0; i < num_bytes; ++i) bytes_ += static_cast<char>(value >> (8 * i));
  }
  std::string bytes_;
};

// Field numbers of TensorBoard's event.proto and summary.proto.
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr int kSummaryValue = 1, kValueTag = 1, kSimpleValue = 2, kValueImage = 4;
constexpr int kImageHeight = 1, kImageWidth = 2, kImageColorspace = 3, kImageBytes = 4;
constexpr int kSessionStatus = 1, kSessionStart = 1;

Message make_event(double wall_time, int64_t step) {
  Message event;
  event.fixed64(kWallTime, wall_time).integer(kStep, step);
  return event;
}

}  // namespace

std::string version_event(double wall_time) {
  return make_event(wall_time, 0).text(kFileVersion, "brain.Event:2").bytes();
}

std::string session_start_event(double wall_time, int64_t step) {
  const Message session = Message().integer(kSessionStatus, kSessionStart);
  return make_event(wall_time, step).text(kSessionLog, session.bytes()).bytes();
}

std::string scalars_event(double wall_time, int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  Message summary;
  for (const auto& [tag, number] : values) {
    const Message value = Message().text(kValueTag, tag).fixed32(kSimpleValue, static_cast<float>(number));
    summary.text(kSummaryValue, value.bytes());
  }
  return make_event(wall_time, step).text(kSummary, summary.bytes()).bytes();
}

std::string image_event(double wall_time, int64_t step, const std::string& tag, int64_t height, int64_t width,
                        std::string_view png) {
  constexpr int kRgb = 3;
  const Message image = Message()
                            .integer(kImageHeight, height)
                            .integer(kImageWidth, width)
                            .integer(kImageColorspace, kRgb)
                            .text(kImageBytes, png);
  const Message value = Message().text(kValueTag, tag).text(kValueImage, image.bytes());
  const Message summary = Message().text(kSummaryValue, value.bytes());
  return make_event(wall_time, step).text(kSummary, summary.bytes()).bytes();
}

}  // namespace dalle::training

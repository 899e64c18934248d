#include "dalle/training/tensorboard.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/image_codec.h"
#include "dalle/generation/picture_writer.h"
#include "dalle/training/event_record.h"

namespace dalle::training {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0x82F63B78u : 0u);
    table[byte] = remainder;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

// TFRecord stores checksums rotated and shifted, so that a checksum of data that holds checksums stays meaningful.
uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8u; }

template <class Integer>
std::string little_endian(Integer value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof value; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  return bytes;
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string event_file_name() {
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  char name[400];
  std::snprintf(name, sizeof name, "events.out.tfevents.%010lld.%s.%d", static_cast<long long>(wall_time()), host,
                static_cast<int>(::getpid()));
  return name;
}

[[noreturn]] void fail_event_file(const std::string& what, const std::filesystem::path& path) {
  throw FileError(Problem{what + " " + path.string(), "", std::strerror(errno), ""});
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char byte : bytes) crc = crc >> 8 ^ kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  return ~crc;
}

std::string tfrecord_frame(std::string_view payload) {
  const std::string length = little_endian<uint64_t>(payload.size());
  return str(length, little_endian(masked(crc32c(length))), payload, little_endian(masked(crc32c(payload))));
}

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& directory, int64_t resumed_step) {
  const std::string name = event_file_name();
  for (int copy = 1; descriptor_ < 0; ++copy) {
    file_ = directory / (copy == 1 ? name : str(name, ".", copy));
    descriptor_ = ::open(file_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    if (descriptor_ < 0 && errno != EEXIST) fail_event_file("cannot create", file_);
  }
  append(version_event(wall_time()));
  if (resumed_step >= 0) append(session_start_event(wall_time(), resumed_step + 1));
}

TensorBoardWriter::~TensorBoardWriter() { ::close(descriptor_); }

void TensorBoardWriter::scalars(int64_t step, const std::vector<std::pair<std::string, double>>& tagged_values) {
  append(scalars_event(wall_time(), step, tagged_values));
}

void TensorBoardWriter::image(int64_t step, const std::string& tag, const Tensor& picture) {
  const Tensor pixels = generation::to_picture(picture);
  append(image_event(wall_time(), step, tag, pixels.size(0), pixels.size(1), data::encode_png(pixels)));
}

void TensorBoardWriter::append(const std::string& payload) {
  const std::string frame = tfrecord_frame(payload);
  for (size_t done = 0; done < frame.size();) {
    const ssize_t written = ::write(descriptor_, frame.data() + done, frame.size() - done);
    if (written < 0 && errno != EINTR) fail_event_file("cannot write", file_);
    if (written > 0) done += static_cast<size_t>(written);
  }
}

}  // namespace dalle::training

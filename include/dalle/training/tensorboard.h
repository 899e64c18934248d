// TensorBoard event files: TFRecord frames (length, masked crc32c, payload, masked crc32c) around Event messages.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::training {

class TensorBoardWriter {
 public:
  /// Starts a new file events.out.tfevents.TIME.HOST.PID in `directory`, which must exist. A resumed run gives the step it
  /// resumed from, so that TensorBoard drops what the interrupted process logged for later steps. Throws FileError.
  explicit TensorBoardWriter(const std::filesystem::path& directory, int64_t resumed_step = -1);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  /// One point of each scalar. Each call is on disk when it returns (one write, no buffer). Throws FileError.
  void scalars(int64_t step, const std::vector<std::pair<std::string, double>>& tagged_values);

  /// A picture, u8 [H, W, 3] or floating point [3, H, W] in 0..1.
  void image(int64_t step, const std::string& tag, const Tensor& picture);

  const std::filesystem::path& file() const { return file_; }

 private:
  void append(const std::string& payload);

  std::filesystem::path file_;
  int descriptor_ = -1;
};

/// CRC-32C (Castagnoli) of `bytes`.
uint32_t crc32c(std::string_view bytes);

/// The frame that a TFRecord file holds for one payload.
std::string tfrecord_frame(std::string_view payload);

}  // namespace dalle::training

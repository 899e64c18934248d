// Writing in the background: the loop goes on while a checkpoint, copied to the host, goes to disk. One at a time.
#pragma once

#include <functional>
#include <future>
#include <string>
#include <vector>

#include "dalle/storage/named_tensor.h"
#include "dalle/storage/tensor_pieces.h"

namespace dalle::training {

class CheckpointWriter {
 public:
  using Write = std::function<std::string()>;

  CheckpointWriter() = default;
  /// Waits for what is under way.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Runs `write` in a thread of its own. What was started before must have been finished.
  void start(Write write);
  /// Started and not finished.
  bool has_work() const { return result_.valid(); }
  /// Nothing is under way: finish() would not wait.
  bool is_done() const;
  /// Waits; what `write` returned, "" where nothing was started. Throws what it threw.
  std::string finish();

 private:
  std::future<std::string> result_;
};

/// Copies in host memory that training does not change.
std::vector<storage::NamedTensor> copied_to_host(std::vector<storage::NamedTensor> tensors);
std::vector<storage::TensorPiece> copied_to_host(std::vector<storage::TensorPiece> pieces);

}  // namespace dalle::training

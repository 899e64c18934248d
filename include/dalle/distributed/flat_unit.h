// Tensors of one resblock as one flat buffer, of which each rank of a group keeps a part (paper 2.5 and E.1; Rajbhandari et
// al. 2020, "ZeRO"). The whole buffer has memory only between gather and release. The tensors are views of it that
// stay valid: what autograd has saved of them is there again after the next gather.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

/// A tensor without holes in memory.
struct FlatShape {
  std::vector<int64_t> sizes, strides;
  int64_t numel() const;
};

/// Numbers [begin, end) of a tensor, in the order of its memory, that lie at `offset` of a rank's part.
struct FlatSlice {
  size_t tensor = 0;
  int64_t begin = 0, end = 0, offset = 0;
};

/// How tensors lie in a flat buffer that some ranks share out.
struct FlatLayout {
  FlatLayout(const std::vector<FlatShape>& shapes, int64_t num_parts);
  /// What is in a part: padding belongs to no tensor.
  std::vector<FlatSlice> slices(int64_t part) const;

  std::vector<int64_t> offsets, numels;  // of the tensors
  int64_t part_size = 0;
};

class FlatUnit {
 public:
  /// With memory for the whole, all zeros. `group` outlives this.
  FlatUnit(std::vector<FlatShape> shapes, const at::TensorOptions& options, Communicator& group);

  size_t num_tensors() const { return shapes_.size(); }
  const FlatShape& shape(size_t tensor) const { return shapes_[tensor]; }
  /// A view of the whole with the tensor's shape; a leaf of its own. To be asked for while there is memory.
  Tensor view(size_t tensor) const;
  /// What this rank keeps: padding belongs to no tensor.
  const std::vector<FlatSlice>& slices() const { return slices_; }
  int64_t part_size() const { return layout_.part_size; }
  /// This rank's part of the whole: memory of it, gone with release().
  Tensor own_part() const;

  bool is_whole() const { return has_memory_ && !is_gathering_; }
  /// Starts to make the whole from the ranks' parts, unless it is there or on its way. `part` [part_size].
  void start_gather(const Tensor& part);
  /// Returns with the whole there.
  void gather(const Tensor& part);
  /// Replaces the values of a whole that is there.
  void gather_again(const Tensor& part);
  /// Gives the whole's memory back; waits for a gather that is under way.
  void release();

  /// Starts to sum gradients over the group. An undefined one counts as zeros. Their values have been copied on return.
  void start_reduce(const std::vector<Tensor>& gradients);
  bool is_reducing() const { return reduced_.defined(); }
  /// This rank's part of the sum [part_size], in memory of its own.
  Tensor finish_reduce();

 private:
  void allocate();

  std::vector<FlatShape> shapes_;
  FlatLayout layout_;
  std::vector<FlatSlice> slices_;
  Communicator& group_;
  Tensor whole_, reduced_;
  Pending gathering_, reducing_;
  bool has_memory_ = true, is_gathering_ = false;
};

}  // namespace dalle::distributed

// Tensors of one resblock as one flat buffer, of which each rank of a group keeps a part (paper 2.5 and E.1; Rajbhandari et
// al. 2020, "ZeRO"). The whole buffer has memory only between gather and release. The tensors are views of it that
// stay valid: what autograd has saved of them is there again after the next gather. To gather and to reduce take one
// collective each, however the tensors are cut.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dalle/core/number_range.h"
#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

/// A tensor without holes in memory.
struct FlatShape {
  std::vector<int64_t> sizes;
  std::vector<int64_t> order;  // of dimensions in memory, the slowest first; none: that of sizes
  /// So many equal stretches of its memory are shared out among the ranks each for itself; 0: it is shared out
  /// together with the others that have 0 and may be rounded as it may, wherever the borders of parts then lie.
  int64_t num_segments = 0;
  bool may_be_rounded = false;  // every use rounds it to a unit's sent_type first: it may be sent in that type

  int64_t numel() const;
  std::vector<int64_t> strides() const;
};

/// Numbers of a tensor, in the order of its memory, that lie one after the other from `offset` of a rank's part on.
struct FlatSlice {
  size_t tensor = 0;
  std::vector<NumberRange> ranges;
  int64_t offset = 0;

  int64_t size() const { return total_size(ranges); }
};

/// Neighbouring numbers of the whole of which each rank has an equal share: [begin, begin + share * ranks).
struct FlatSegment {
  int64_t begin = 0, offset = 0, share = 0;  // offset: of the share in a rank's part
  bool may_be_rounded = false;
};

/// How tensors lie in a flat buffer that some ranks share out: first those with segments of their own, then those that may
/// be rounded in one segment, and the others in another.
class FlatLayout {
 public:
  /// Throws c10::ValueError where the parts do not divide a tensor's segments.
  FlatLayout(const std::vector<FlatShape>& shapes, int64_t num_parts);
  /// What is in a part, at most one for each tensor, in their order: padding belongs to no tensor.
  std::vector<FlatSlice> slices(int64_t part) const;

  const std::vector<FlatSegment>& segments() const { return segments_; }
  int64_t tensor_offset(size_t tensor) const { return places_[tensor].offset; }
  int64_t part_size() const { return part_size_; }
  int64_t whole_size() const { return whole_size_; }

 private:
  void share_out(const std::vector<FlatShape>& shapes, bool may_be_rounded);

  struct Place {
    int64_t offset = 0, numel = 0;
    int64_t num_segments = 0, first_segment = 0;
  };
  int64_t num_parts_;
  std::vector<Place> places_;  // of the tensors
  std::vector<FlatSegment> segments_;
  int64_t part_size_ = 0, whole_size_ = 0;
};

/// The values that a gather brings.
enum class Gather {
  kExact,
  kRounded,  // to sent_type, of what may be: fewer bytes on the way
};

class FlatUnit {
 public:
  /// With memory for the whole, all zeros. `group` outlives this.
  FlatUnit(std::vector<FlatShape> shapes, const at::TensorOptions& options, Communicator& group,
           std::optional<at::ScalarType> sent_type = {});

  size_t num_tensors() const { return shapes_.size(); }
  const FlatShape& shape(size_t tensor) const { return shapes_[tensor]; }
  /// A view of the whole with the tensor's shape; a leaf of its own. To be asked for while there is memory.
  Tensor view(size_t tensor) const;
  /// What this rank keeps: padding belongs to no tensor.
  const std::vector<FlatSlice>& slices() const { return slices_; }
  int64_t part_size() const { return layout_.part_size(); }
  /// This rank's part of the whole: memory of it, gone with release(), where all is one segment; else a copy.
  Tensor own_part() const;

  bool is_whole() const { return has_memory_ && !is_gathering_; }
  /// Starts to make the whole from the ranks' parts, unless it is there or on its way with such values; exact ones serve as
  /// rounded ones. `part` [part_size]. Of several segments, or rounded, the whole has memory once
  /// gather() returns.
  void start_gather(const Tensor& part, Gather values = Gather::kExact);
  /// Returns with the whole there.
  void gather(const Tensor& part, Gather values = Gather::kExact);
  /// Replaces the values of a whole that is there by exact ones.
  void gather_again(const Tensor& part);
  /// Gives the whole's memory back; waits for a gather that is under way.
  void release();

  /// Starts to sum gradients over the group. An undefined one counts as zeros. Their values have been copied on return.
  void start_reduce(std::vector<Tensor> gradients);
  bool is_reducing() const { return reduced_.defined(); }
  /// This rank's part of the sum [part_size], in memory of its own.
  Tensor finish_reduce();

 private:
  void allocate();
  void start_all_gather(const Tensor& part);
  void finish_all_gather();
  bool is_one_segment() const;
  Tensor segment_of_whole(const Tensor& whole, const FlatSegment& segment) const;
  at::ScalarType type_of(const FlatSegment& segment) const;
  int64_t bytes_of(const FlatSegment& segment) const;
  std::vector<Tensor> unpacked(const Tensor& bytes) const;

  std::vector<FlatShape> shapes_;
  FlatLayout layout_;
  std::vector<FlatSlice> slices_;
  Communicator& group_;
  std::optional<at::ScalarType> sent_type_;
  Tensor whole_, reduced_;
  Tensor received_;  // u8 [ranks * bytes]: parts of a gather that does not go straight to the whole
  Pending gathering_, reducing_;
  bool has_memory_ = true, is_gathering_ = false, is_rounded_ = false;
};

}  // namespace dalle::distributed

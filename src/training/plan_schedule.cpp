// The tasks of a planned step: what Plan::schedule() issues, in order (paper 2.5, E.2).
#include <algorithm>
#include <cmath>
#include <utility>

#include <c10/core/ScalarType.h>

#include "dalle/distributed/gradient_reducer.h"
#include "dalle/training/plan.h"

namespace dalle::training {

class StepSchedule {
 public:
  explicit StepSchedule(const Plan& plan) : plan_(plan), device_(plan.device_) {}

  std::vector<StepTask> make() {
    const int64_t rounds = plan_.micro_batches_per_step();
    for (int64_t round = 0; round < rounds; ++round) {
      forward();
      backward(round + 1 == rounds);
    }
    update();
    return std::move(tasks_);
  }

 private:
  using Ids = std::vector<size_t>;

  size_t add(std::string name, Stream stream, double seconds, double bytes, Ids after) {
    tasks_.push_back({std::move(name), stream, seconds, bytes, std::move(after)});
    return tasks_.size() - 1;
  }

  size_t compute(const std::string& name, const ModelUnit& unit, double passes, double traffic_passes, Ids after) {
    const double samples = static_cast<double>(plan_.micro_batch());
    const auto dtype = unit.name == "heads" ? plan_.compute_.head_dtype : plan_.compute_.dtype;
    const double seconds = passes * unit.forward_flops / device_.matrix_speed(dtype) +
                           traffic_passes * unit.forward_traffic / device_.memory_bandwidth;
    return add(name + " " + unit.name, Stream::kCompute, samples * seconds, 0, std::move(after));
  }

  /// A ring's all-gather or reduce-scatter of `bytes` over `size` members of each level; waits for `after`.
  size_t part_over(const std::string& name, Stream stream, int64_t size, double bytes, Ids after) {
    const bool link = stream == Stream::kLink;
    const double sent = bytes * static_cast<double>(size - 1) / static_cast<double>(size);
    const double hops = std::ceil(std::log2(static_cast<double>(size)));
    return add(name, stream,
               sent / (link ? device_.link_bandwidth : device_.machine_bandwidth) +
                   hops * (link ? device_.link_latency_seconds : device_.machine_latency_seconds),
               sent, std::move(after));
  }

  int64_t in_machine(int64_t members) const { return std::min(members, device_.devices_per_machine); }

  Ids gather(const std::string& name, double bytes, int64_t members, Ids after) {
    const int64_t local = in_machine(members);
    if (members > local) after = {part_over(name, Stream::kMachine, members / local, bytes, after)};
    if (local > 1) after = {part_over(name, Stream::kLink, local, bytes, after)};
    return after;
  }

  Ids scatter(const std::string& name, double bytes, int64_t members, Ids after) {
    const int64_t local = in_machine(members);
    if (local > 1) after = {part_over(name, Stream::kLink, local, bytes, after)};
    if (members > local) after = {part_over(name, Stream::kMachine, members / local, bytes, after)};
    return after;
  }

  /// Over the replicas: what all shards of a machine send together is `bytes`.
  Ids all_reduce(const std::string& name, double bytes, Ids after) {
    const int64_t replicas = plan_.num_replicas();
    if (replicas == 1) return after;
    if (plan_.group_ == 1) return gather(name, bytes, replicas, scatter(name, bytes, replicas, after));
    const size_t scattered = part_over(name, Stream::kMachine, replicas, bytes, after);
    return {part_over(name, Stream::kMachine, replicas, bytes, {scattered})};
  }

  bool gathers() const { return plan_.is_sharded() && plan_.group_ > 1; }

  static Ids joined(Ids first, const Ids& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  }

  /// A block's weights are gathered while the one before it computes: no earlier.
  void forward() {
    Ids before = last_, earlier = last_;
    for (const auto& unit : plan_.units_) {
      const Ids weights =
          gathers() ? gather("gather " + unit.name, plan_.sent_bytes(unit), plan_.group_, earlier) : Ids{};
      earlier = before;
      before = {compute("forward", unit, 1, 1, joined(before, weights))};
    }
    last_ = before;
  }

  /// Gathering waits for the reduce-scatter of two blocks before: memory for two whole blocks, no more (paper E.2).
  void backward(bool reduces) {
    const double again = plan_.config_.trainer.activation_checkpointing ? 1 : 0;
    Ids before = last_, earlier = last_;
    for (size_t i = plan_.units_.size(); i-- > 0;) {
      const ModelUnit& unit = plan_.units_[i];
      const Ids weights =
          gathers() ? gather("gather " + unit.name, plan_.sent_bytes(unit), plan_.group_, earlier) : Ids{};
      earlier = before;
      const bool is_block = !unit.matrices.empty();
      const double repeated = is_block ? again : 0;
      before = {compute("backward", unit, 2 + repeated, 2 + repeated, joined(before, weights))};
      Ids gradient = before;
      if (gathers()) {
        gradient = scatter("scatter " + unit.name, plan_.stored_bytes(unit), plan_.group_, gradient);
        earlier = joined(earlier, last_scatter_);
        last_scatter_ = gradient;
      }
      done_ = joined(done_, gradient);
      if (reduces) reduce(unit, gradient);
    }
    reduce_bucket();
    last_ = before;
    last_scatter_.clear();
  }

  void reduce(const ModelUnit& unit, const Ids& after) {
    if (!unit.compressed.empty()) {
      done_ = joined(done_, compressed(unit, after));
    } else if (plan_.layout_.sharding == Sharding::kOptimizer) {
      done_ =
          joined(done_, scatter("scatter " + unit.name, plan_.stored_bytes(unit), plan_.layout_.num_devices, after));
    } else if (plan_.layout_.sharding == Sharding::kNone && !plan_.compression_.enabled) {
      add_to_bucket(plan_.stored_bytes(unit), after);
    } else {
      done_ = joined(done_, all_reduce("reduce " + unit.name, plan_.stored_bytes(unit), after));
    }
  }

  /// As distributed::GradientReducer does, though it cuts between tensors and this between units.
  void add_to_bucket(double bytes, const Ids& after) {
    if (bucket_bytes_ + bytes > static_cast<double>(distributed::GradientReducer::kBucketBytes)) reduce_bucket();
    bucket_bytes_ += bytes;
    bucket_ = joined(std::move(bucket_), after);
  }
  void reduce_bucket() {
    if (bucket_bytes_ > 0) done_ = joined(done_, all_reduce("reduce a bucket", bucket_bytes_, bucket_));
    bucket_bytes_ = 0;
    bucket_.clear();
  }

  /// Factors of all shards of a machine. In this program 1-6-9 floats of all replicas are gathered (distributed/powersgd.h);
  /// the paper has a kernel that sums them on the way.
  Ids send_factors(const std::string& name, double numbers, Ids after) {
    const bool sums = plan_.layout_.state_in_16_bits || plan_.compression_.factors == distributed::ErrorFormat::kF32;
    if (sums) return all_reduce(name, plan_.matrix_bytes() * numbers, std::move(after));
    const int64_t replicas = plan_.num_replicas();
    const double bytes = 2 * numbers * static_cast<double>(replicas);
    if (replicas == 1) return after;
    if (plan_.group_ == 1) return gather(name, bytes, replicas, std::move(after));
    return {part_over(name, Stream::kMachine, replicas, bytes, std::move(after))};
  }

  Ids compressed(const ModelUnit& unit, const Ids& after) {
    double p = 0, q = 0, flops = 0, orthogonal_flops = 0, exact = unit.numbers();
    for (const auto& matrix : unit.compressed) {
      const double r = static_cast<double>(matrix.columns(plan_.compression_.rank));
      const double m = static_cast<double>(std::min(matrix.rows, matrix.cols));
      const double n = static_cast<double>(std::max(matrix.rows, matrix.cols));
      p += m * r;
      q += n * r;
      exact -= m * n;
      flops += 2 * m * n * r;
      orthogonal_flops += 4 * m * r * r;
    }
    const double speed = device_.matrix_speed(at::kFloat) * static_cast<double>(plan_.group_);
    const size_t p_made = add("P of " + unit.name, Stream::kCompute, flops / speed, 0, after);
    const Ids p_sent = send_factors("P of " + unit.name, p, {p_made});
    const size_t q_made = add("Q of " + unit.name, Stream::kCompute, (flops + orthogonal_flops) / speed, 0, p_sent);
    const Ids q_sent = send_factors("Q of " + unit.name, q, {q_made});
    return joined(all_reduce("rest of " + unit.name, 4 * exact, after),
                  {add("decompress " + unit.name, Stream::kCompute, flops / speed, 0, q_sent)});
  }

  void update() {
    const DeviceMemory memory = plan_.memory();
    // Each is read and written but the gradient, which is read.
    const double moved = 2 * (memory.weights + memory.moments + memory.average) + memory.gradients;
    const double seconds = moved / device_.memory_bandwidth;
    const size_t updated = add("update", Stream::kCompute, seconds, 0, joined(done_, last_));
    if (plan_.layout_.sharding != Sharding::kOptimizer) return;
    double bytes = 0;
    for (const auto& unit : plan_.units_) bytes += plan_.stored_bytes(unit);
    gather("gather weights", bytes, plan_.layout_.num_devices, {updated});
  }

  const Plan& plan_;
  const DeviceDescription& device_;
  std::vector<StepTask> tasks_;
  Ids last_, last_scatter_, done_;
  Ids bucket_;
  double bucket_bytes_ = 0;
};

std::vector<StepTask> Plan::schedule() const { return StepSchedule(*this).make(); }

}  // namespace dalle::training

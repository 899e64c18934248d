// Numbers of a run: metrics.jsonl (one JSON object a line) and, where a writer is given, TensorBoard.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace dalle::training {

class TensorBoardWriter;

using NamedValues = std::vector<std::pair<std::string, double>>;

class MetricsWriter {
 public:
  /// Appends to `jsonl`. `tensorboard` may be null and must outlive the writer.
  explicit MetricsWriter(std::filesystem::path jsonl, TensorBoardWriter* tensorboard = nullptr);

  /// One line {"step": .., "phase": "train", "time": unix seconds, NAME: value, ...} and scalars tagged PHASE/NAME.
  /// Values that are not finite are written as "nan", "inf", "-inf". Throws c10::ValueError for a name used twice or
  /// taken by the line's own keys, FileError where the line cannot be written.
  void log(int64_t step, const std::string& phase, const NamedValues& values);

  /// One line {"step": .., "phase": "health", "time": .., "alarm": ALARM, "message": MESSAGE, NAME: value, ...}.
  void event(int64_t step, const std::string& alarm, const std::string& message, const NamedValues& values);

  /// One line of another phase with texts first: {"step": .., "phase": PHASE, "time": .., NAME: "text", NAME: value, ...}.
  void record(int64_t step, const std::string& phase, const std::vector<std::pair<std::string, std::string>>& texts,
              const NamedValues& values);

 private:
  std::filesystem::path jsonl_;
  TensorBoardWriter* tensorboard_;
};

/// Removes the lines of later steps, and a last line that a killed process left unfinished, by an atomic rewrite. A file
/// that does not exist or needs no change is left alone.
void cut_metrics_after(const std::filesystem::path& jsonl, int64_t step);

/// A weighted mean of values as they come.
class Average {
 public:
  void add(double value, double weight = 1);
  /// NaN before the first value.
  double mean() const;
  bool is_empty() const { return weight_ == 0; }
  void reset() { *this = Average(); }

 private:
  double sum_ = 0;
  double weight_ = 0;
};

/// Seconds of some steps, by what they were spent on, and the items that went through.
struct TimeSpent {
  double seconds = 0;
  double waited = 0;    // for data
  double prepared = 0;  // batches, on the training thread
  int64_t items = 0;

  TimeSpent& operator+=(const TimeSpent& other);
  double items_per_second() const { return seconds > 0 ? static_cast<double>(items) / seconds : 0; }
  /// Shares of the time, 0..1.
  double wait_share() const;
  double prepare_share() const;
};

/// Where the time of the steps since the last reset went. Call begin_wait / end_wait around taking a batch from the
/// loader, begin_prepare / end_prepare around what the training thread does to it (encoding by a frozen dVAE) and
/// add_items after the step. Times in seconds of the steady clock.
class Throughput {
 public:
  Throughput() : Throughput(steady_seconds()) {}
  explicit Throughput(double now) : start_(now) {}
  void begin_wait(double now = steady_seconds()) { wait_start_ = now; }
  void end_wait(double now = steady_seconds()) { waited_ += now - wait_start_; }
  void begin_prepare(double now = steady_seconds()) { prepare_start_ = now; }
  void end_prepare(double now = steady_seconds()) { prepared_ += now - prepare_start_; }
  void add_items(int64_t count) { items_ += count; }
  TimeSpent spent(double now = steady_seconds()) const;
  void reset(double now = steady_seconds()) { *this = Throughput(now); }

  static double steady_seconds();

 private:
  double start_;
  double wait_start_ = 0;
  double waited_ = 0;
  double prepare_start_ = 0;
  double prepared_ = 0;
  int64_t items_ = 0;
};

}  // namespace dalle::training

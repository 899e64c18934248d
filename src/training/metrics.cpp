#include "dalle/training/metrics.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "dalle/core/files.h"
#include "dalle/training/tensorboard.h"

namespace dalle::training {
namespace {

using Json = nlohmann::ordered_json;

Json json_number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

// Unix time in seconds, to the millisecond.
double unix_seconds() {
  using namespace std::chrono;
  return static_cast<double>(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count()) / 1000.0;
}

// False for lines of later steps and for a line that was cut short.
bool keeps_line(std::string_view line, int64_t last_step) {
  const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!entry.is_object() || !entry.contains("step") || !entry["step"].is_number()) return false;
  return entry["step"].get<int64_t>() <= last_step;
}

}  // namespace

MetricsWriter::MetricsWriter(std::filesystem::path jsonl, TensorBoardWriter* tensorboard)
    : jsonl_(std::move(jsonl)), tensorboard_(tensorboard) {}

void MetricsWriter::log(int64_t step, const std::string& phase, const NamedValues& values) {
  Json line = {{"step", step}, {"phase", phase}, {"time", unix_seconds()}};
  NamedValues tagged;
  for (const auto& [name, value] : values) {
    TORCH_CHECK_VALUE(!line.contains(name), "metric '", name, "' is logged twice in one line");
    line[name] = json_number(value);
    tagged.emplace_back(phase + "/" + name, value);
  }
  append_line(jsonl_, line.dump(-1, ' ', false, Json::error_handler_t::replace));
  if (tensorboard_ != nullptr) tensorboard_->scalars(step, tagged);
}

void MetricsWriter::event(int64_t step, const std::string& alarm, const std::string& message,
                          const NamedValues& values) {
  record(step, "health", {{"alarm", alarm}, {"message", message}}, values);
}

void MetricsWriter::record(int64_t step, const std::string& phase,
                           const std::vector<std::pair<std::string, std::string>>& texts, const NamedValues& values) {
  Json line = {{"step", step}, {"phase", phase}, {"time", unix_seconds()}};
  for (const auto& [name, text] : texts) line[name] = text;
  for (const auto& [name, value] : values) line[name] = json_number(value);
  append_line(jsonl_, line.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void cut_metrics_after(const std::filesystem::path& jsonl, int64_t step) {
  if (!std::filesystem::exists(jsonl)) return;
  const std::string content = read_file(jsonl);
  std::string kept;
  for (size_t start = 0; start < content.size();) {
    const size_t end = std::min(content.find('\n', start), content.size());
    const std::string_view line = std::string_view(content).substr(start, end - start);
    if (keeps_line(line, step)) kept.append(line).append("\n");
    start = end + 1;
  }
  if (kept != content) write_file(jsonl, kept);
}

void Average::add(double value, double weight) {
  sum_ += value * weight;
  weight_ += weight;
}

double Average::mean() const { return weight_ == 0 ? std::numeric_limits<double>::quiet_NaN() : sum_ / weight_; }

TimeSpent& TimeSpent::operator+=(const TimeSpent& other) {
  seconds += other.seconds;
  waited += other.waited;
  prepared += other.prepared;
  items += other.items;
  return *this;
}

double TimeSpent::wait_share() const { return seconds > 0 ? std::clamp(waited / seconds, 0.0, 1.0) : 0; }
double TimeSpent::prepare_share() const { return seconds > 0 ? std::clamp(prepared / seconds, 0.0, 1.0) : 0; }

TimeSpent Throughput::spent(double now) const {
  return {.seconds = std::max(0.0, now - start_), .waited = waited_, .prepared = prepared_, .items = items_};
}

double Throughput::steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace dalle::training

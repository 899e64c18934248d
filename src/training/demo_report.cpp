#include "dalle/training/demo_report.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/data/dataset.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/loader.h"
#include "dalle/evaluation/retrieval.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

using nlohmann::json;

/// The validation lines of a run, oldest first.
std::vector<json> validation_lines(const std::filesystem::path& run) {
  std::vector<json> lines;
  std::istringstream text(read_file(run / "metrics.jsonl"));
  for (std::string line; std::getline(text, line);) {
    json parsed = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object() && parsed.value("phase", "") == "validation") lines.push_back(std::move(parsed));
  }
  if (lines.empty()) throw DataError((run / "metrics.jsonl").string() + ": no validation line");
  return lines;
}

class Table {
 public:
  void row(const std::string& what, double value, const std::string& bar, bool met) {
    std::printf("  %-66s %8.3f   %-10s %s\n", what.c_str(), value, bar.c_str(), met ? "ok" : "MISSED");
    all_met_ = all_met_ && met;
  }
  void at_least(const std::string& what, double value, double bar) {
    row(what, value, ">= " + short_number(bar), value >= bar);
  }
  void at_most(const std::string& what, double value, double bar) {
    row(what, value, "<= " + short_number(bar), value <= bar);
  }
  bool all_met() const { return all_met_; }

 private:
  bool all_met_ = true;
};

void dvae_rows(const std::filesystem::path& run, Table& table) {
  const auto lines = validation_lines(run);
  const json& last = lines.back();
  table.at_least("dVAE: validation PSNR of argmax codes, dB", last.at("psnr"), 18.5);
  table.at_least("dVAE: share of codes used", last.at("codes_used"), 0.4);
  table.at_most("dVAE: |ELB gap| at the end, nats per sub-pixel", std::abs(last.at("elb_gap").get<double>()), 0.03);
  for (const auto& line : lines) {
    const double temperature = line.at("temperature");
    if (temperature < 0.5 || temperature > 0.65) continue;
    table.at_least(str("dVAE: ELB gap at temperature ", short_number(temperature)), line.at("elb_gap"), 0.05);
    return;
  }
  table.row("dVAE: ELB gap near temperature 0.57 (no validation there)", std::nan(""), ">= 0.05", false);
}

void clip_rows(const std::filesystem::path& run, Table& table) {
  const json last = validation_lines(run).back();
  table.at_least("CLIP: R@1 picture to caption among 100 training pairs", last.at("train_image_to_text_r1"), 0.6);
  table.at_least("CLIP: R@1 caption to picture among 100 training pairs", last.at("train_text_to_image_r1"), 0.6);
  const double chance = 5.0 / last.at("validation_pairs").get<double>();
  table.at_least("CLIP: R@5 picture to caption, validation, times chance",
                 last.at("validation_image_to_text_r5").get<double>() / chance, 2);
  table.at_least("CLIP: R@5 caption to picture, validation, times chance",
                 last.at("validation_text_to_image_r5").get<double>() / chance, 2);
}

Tensor read_picture(const std::filesystem::path& path) {
  return data::decode_picture(read_file(path)).permute({2, 0, 1}).to(at::kFloat).div_(255);
}

/// The training picture of each caption, at the size of the samples.
Tensor originals_of(const std::vector<std::string>& captions, const std::filesystem::path& data, int64_t size) {
  const data::Dataset dataset({data::SourceConfig{.path = data}});
  std::map<std::string, int64_t> index_of;
  for (int64_t i = 0; i < dataset.size(); ++i) index_of.emplace(dataset.captions(i).front(), i);
  data::DataConfig plain;
  plain.augmentation = data::Augmentation::kNone;
  std::vector<Tensor> pictures;
  for (const auto& caption : captions) {
    const auto found = index_of.find(caption);
    if (found == index_of.end()) throw DataError("no training picture has the caption '" + caption + "'");
    pictures.push_back(data::load_range(dataset, plain, size, found->second, 1).images[0].to(at::kFloat).div_(255));
  }
  return at::stack(pictures);
}

void sample_rows(const std::filesystem::path& samples, const std::filesystem::path& data, Table& table) {
  const json scores = json::parse(read_file(samples / "scores.json"));
  std::vector<std::string> captions;
  std::vector<Tensor> best;
  std::vector<std::vector<Tensor>> all;
  for (const auto& caption : scores.at("captions")) {
    captions.push_back(caption.at("caption"));
    auto& pictures = all.emplace_back();
    for (const auto& candidate : caption.at("candidates")) {
      pictures.push_back(read_picture(samples / candidate.at("file").get<std::string>()));
    }
    best.push_back(pictures.front());  // candidates are written by rank
  }
  const Tensor originals = originals_of(captions, data, best.front().size(1));
  const double kept = evaluation::nearest_original_rate(at::stack(best), originals);
  double random = 0;
  const size_t candidates = all.front().size();
  for (size_t n = 0; n < candidates; ++n) {
    std::vector<Tensor> nth;
    for (const auto& pictures : all) nth.push_back(pictures.at(n));
    random += evaluation::nearest_original_rate(at::stack(nth), originals) / static_cast<double>(candidates);
  }
  table.at_least(str("samples: best of ", candidates, " is nearest to its own picture among ", captions.size()), kept,
                 0.8);
  table.row("samples: the same for a random candidate", random, "< kept", random < kept);
}

}  // namespace

int run_demo_report(const DemoReportOptions& options) {
  Table table;
  std::printf("The demo's figures:\n");
  dvae_rows(options.run / "dvae", table);
  clip_rows(options.run / "clip", table);
  table.at_most("prior: image cross-entropy on training captions, nats per token",
                validation_lines(options.run / "prior").back().at("train_image_loss"), 0.03);
  sample_rows(options.samples, options.data, table);
  return table.all_met() ? 0 : 1;
}

}  // namespace dalle::training

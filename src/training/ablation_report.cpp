#include "dalle/training/ablation_report.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/models/load.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

/// The last validation of a run that reached its last step, and the alarms of the whole run.
struct RunResult {
  fs::path folder;
  DvaeTraining config;
  std::map<std::string, double> values;
  std::set<std::string> alarms;
};

std::optional<RunResult> result_of(const fs::path& folder) {
  if (!fs::exists(folder / "metrics.jsonl")) return std::nullopt;
  RunResult result{.folder = folder,
                   .config = config::load_config_file<DvaeTraining>(folder / "config.yaml"),
                   .values = {},
                   .alarms = {}};
  std::istringstream text(read_file(folder / "metrics.jsonl"));
  for (std::string line; std::getline(text, line);) {
    const auto entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!entry.is_object()) continue;
    if (entry.at("phase") == "health") result.alarms.insert(entry.at("alarm").get<std::string>());
    if (entry.at("phase") != "validation" || entry.at("step") != result.config.trainer.num_steps) continue;
    for (const auto& [name, value] : entry.items()) {
      if (value.is_number()) result.values[name] = value.get<double>();
    }
  }
  if (result.values.empty()) return std::nullopt;
  // Nats over pixels in [0, 1] for every likelihood (layers/likelihood.h).
  const bool mapped = result.config.model.likelihood == layers::Likelihood::kLogitLaplace;
  result.values["nats"] = result.values.at("elb_hard") - (mapped ? std::log(1 - 2 * layers::kLogitLaplaceEps) : 0);
  return result;
}

struct Column {
  const char* key;
  const char* title;
  const char* format;
};

constexpr Column kColumns[] = {{"psnr", "PSNR, dB", "%.2f"},
                               {"ssim", "SSIM", "%.3f"},
                               {"nats", "-ELB, nats", "%.3f"},
                               {"elb_gap", "ELB gap", "%.3f"},
                               {"kl", "KL", "%.2f"},
                               {"codes_used", "codes used", "%.3f"},
                               {"dead_codes", "dead codes", "%.0f"},
                               {"perplexity", "perplexity", "%.0f"}};

std::string formatted(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// "18.43 ± 0.05": mean and standard deviation over seeds.
std::string mean_and_spread(const std::vector<RunResult>& runs, const Column& column) {
  double sum = 0, squares = 0;
  for (const auto& run : runs) sum += run.values.at(column.key);
  const double count = static_cast<double>(runs.size()), mean = sum / count;
  for (const auto& run : runs) squares += std::pow(run.values.at(column.key) - mean, 2);
  const std::string text = formatted(column.format, mean);
  return runs.size() < 2 ? text : text + " ± " + formatted(column.format, std::sqrt(squares / (count - 1)));
}

std::string alarms_text(const std::vector<RunResult>& runs) {
  std::map<std::string, int> counts;
  for (const auto& run : runs) {
    for (const auto& alarm : run.alarms) ++counts[alarm];
  }
  std::string text;
  for (const auto& [alarm, count] : counts) text += str(text.empty() ? "" : ", ", alarm, " (", count, ")");
  return text.empty() ? "none" : text;
}

using Results = std::vector<std::pair<Variant, std::vector<RunResult>>>;

std::string table_of(const Results& results) {
  std::string table = "| variant | what it is | runs |";
  std::string rule = "\n|---|---|---|";
  for (const auto& column : kColumns) table += str(" ", column.title, " |"), rule += "---|";
  table += " alarms |" + rule + "---|\n";
  for (const auto& [variant, runs] : results) {
    table += str("| `", variant.name, "` | ", variant.description, " | ", runs.size(), " |");
    for (const auto& column : kColumns) table += str(" ", mean_and_spread(runs, column), " |");
    table += str(" ", alarms_text(runs), " |\n");
  }
  return table;
}

Tensor picture_of(const Results& results, int64_t count) {
  const c10::NoGradGuard no_grad;
  std::vector<generation::SheetRow> rows;
  for (const auto& [variant, runs] : results) {
    const RunResult& run = runs.front();
    const data::Dataset shown(run.config.validation.sources);
    const auto batch = data::load_range(shown, run.config.data, run.config.model.image_size, 0, count);
    const Tensor pixels = to_unit_range(batch.images, at::kCPU);
    if (rows.empty()) rows.push_back({"original", generation::make_cells(pixels)});
    const auto dvae = models::load_dvae(run.folder, {});
    rows.push_back({variant.name, generation::make_cells(dvae.model->decode(dvae.model->encode(pixels)))});
  }
  return generation::labelled_rows(
      rows,
      {.cell_size = 72, .title = "Held-out pictures through each variant's most likely codes", .row_label_width = 150});
}

}  // namespace

std::vector<Variant> read_variants(const fs::path& path) {
  std::vector<Variant> variants;
  std::istringstream text(read_file(path));
  int number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const size_t first = line.find('|'), second = line.find('|', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos) {
      throw ConfigError(
          Problem{str(path.string(), ":", number), "NAME | what it is | key=value ...", "'" + line + "'", ""});
    }
    Variant variant{trimmed(line.substr(0, first)), trimmed(line.substr(first + 1, second - first - 1)), {}};
    std::istringstream assignments(line.substr(second + 1));
    for (std::string assignment; assignments >> assignment;) variant.assignments.push_back(assignment);
    variants.push_back(std::move(variant));
  }
  return variants;
}

std::string make_ablation_report(const AblationReportOptions& options) {
  Results results;
  for (const auto& variant : read_variants(options.variants)) {
    std::vector<RunResult> runs;
    for (int64_t seed = 0; seed < options.seeds; ++seed) {
      if (auto run = result_of(options.runs / str(variant.name, "-seed", seed))) runs.push_back(std::move(*run));
    }
    if (!runs.empty()) results.emplace_back(variant, std::move(runs));
  }
  if (results.empty()) throw DataError(options.runs.string() + ": no finished run of any variant");
  const std::string table = table_of(results);
  if (!options.table.empty()) write_file(options.table, table);
  if (!options.picture.empty()) generation::write_png(options.picture, picture_of(results, options.pictures));
  return table;
}

}  // namespace dalle::training

#include "dalle/generation/scores_json.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

#include "dalle/core/files.h"
#include "score_number.h"

namespace dalle::generation {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormatVersion = 1;

Json settings_object(const std::vector<std::pair<std::string, SettingValue>>& settings) {
  Json object = Json::object();
  for (const auto& [name, setting] : settings) {
    const double* real = std::get_if<double>(&setting);
    object[name] =
        real != nullptr ? score_number(*real) : std::visit([](const auto& value) { return Json(value); }, setting);
  }
  return object;
}

Json numbers_object(const std::vector<std::pair<std::string, double>>& numbers) {
  Json object = Json::object();
  for (const auto& [name, value] : numbers) object[name] = score_number(value);
  return object;
}

Json model_object(const ModelUsed& model) {
  Json object = {{"role", model.role}, {"path", model.path}, {"identity", model.identity}};
  if (model.step >= 0) object["step"] = model.step;
  return object;
}

Json candidate_object(const CandidateScore& score) {
  Json object = {{"rank", score.rank},
                 {"candidate", score.candidate},
                 {"score", score_number(score.score)},
                 {"kept", score.kept},
                 {"file", score.file}};
  for (const auto& [name, value] : score.others) object[name] = score_number(value);
  return object;
}

Json caption_object(const CaptionScores& scores) {
  std::vector<CandidateScore> candidates = scores.candidates;
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  Json object = {{"caption", scores.caption}};
  if (!scores.contact_sheet.empty()) object["contact_sheet"] = scores.contact_sheet;
  object["candidates"] = Json::array();
  for (const CandidateScore& candidate : candidates) object["candidates"].push_back(candidate_object(candidate));
  return object;
}

}  // namespace

std::string scores_json(const ScoresReport& report) {
  Json root = {{"format", "dalle.cpp scores"}, {"version", kFormatVersion}, {"command", report.command}};
  if (!report.created.empty()) root["created"] = report.created;
  root["seed"] = report.seed;
  root["score"] = report.score_name;
  root["settings"] = settings_object(report.settings);
  root["models"] = Json::array();
  for (const ModelUsed& model : report.models) root["models"].push_back(model_object(model));
  root["times_seconds"] = numbers_object(report.times_seconds);
  root["captions"] = Json::array();
  for (const CaptionScores& caption : report.captions) root["captions"].push_back(caption_object(caption));
  return root.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_scores(const std::filesystem::path& directory, const ScoresReport& report) {
  write_file(directory / "scores.json", scores_json(report));
}

std::string utc_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace dalle::generation

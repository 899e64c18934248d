#include "sample_report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/generation/picture_writer.h"

namespace dalle::generation {

CaptionScores caption_scores(const std::string& caption, const std::string& folder,
                             const std::vector<FinishedCandidate>& best_first, int64_t keep, bool sheet) {
  CaptionScores scores{
      .caption = caption, .candidates = {}, .contact_sheet = sheet ? folder + "/contact-sheet.png" : ""};
  for (const auto& candidate : best_first) {
    const auto rank = static_cast<int64_t>(scores.candidates.size()) + 1;
    scores.candidates.push_back({rank,
                                 candidate.number,
                                 candidate.score,
                                 rank <= keep,
                                 str(folder, "/", CandidateStore::picture_name(candidate.number)),
                                 {{"log_likelihood", candidate.log_likelihood}}});
  }
  return scores;
}

CaptionResult caption_view(const CaptionScores& scores) {
  CaptionResult view{.caption = scores.caption, .candidates = {}, .contact_sheet = scores.contact_sheet};
  for (const auto& candidate : scores.candidates) {
    view.candidates.push_back({candidate.file, candidate.score, candidate.rank, candidate.candidate, candidate.kept});
  }
  return view;
}

void write_caption_sheet(const std::filesystem::path& path, const std::string& caption, const CandidateStore& store,
                         const std::vector<FinishedCandidate>& best_first, int64_t keep, RerankBy order) {
  const size_t shown = std::min(best_first.size(), static_cast<size_t>(keep));
  std::vector<SheetCell> cells;
  for (size_t i = 0; i < shown; ++i) {
    char label[64];
    std::snprintf(label, sizeof label, order == RerankBy::kNone ? "%lld" : "%lld: %.3f",
                  static_cast<long long>(best_first[i].number), best_first[i].score);
    cells.push_back({.picture = store.picture(best_first[i].number), .label = label});
  }
  const std::string subtitle = order == RerankBy::kNone
                                   ? str(shown, " of ", best_first.size(), " candidates, by number")
                                   : str("best ", shown, " of ", best_first.size(), ", by ", enum_name(order),
                                         "; number of the candidate: score");
  write_png(path, contact_sheet(cells, {.title = caption, .subtitle = subtitle}));
}

void write_tokens(const std::filesystem::path& path, const std::string& caption, int64_t grid_size,
                  const std::vector<FinishedCandidate>& candidates) {
  nlohmann::ordered_json json{{"caption", caption}, {"grid_size", grid_size}};
  json["tokens"] = nlohmann::ordered_json::array();
  for (const auto& candidate : candidates) json["tokens"].push_back(candidate.tokens);
  write_file(path, json.dump() + "\n");
}

}  // namespace dalle::generation

// Private to sample-and-rerank: what people and programs are shown of a run, from what is on disk.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/generation/candidate_store.h"
#include "dalle/generation/gallery_html.h"
#include "dalle/generation/sample_job.h"
#include "dalle/generation/scores_json.h"

namespace dalle::generation {

/// One caption, under its folder's name ("caption-0003"). `sheet` says whether its contact sheet is there.
CaptionScores caption_scores(const std::string& caption, const std::string& folder,
                             const std::vector<FinishedCandidate>& best_first, int64_t keep, bool sheet);
CaptionResult caption_view(const CaptionScores& scores);

/// Writes the sheet of a caption's kept candidates.
void write_caption_sheet(const std::filesystem::path& path, const std::string& caption, const CandidateStore& store,
                         const std::vector<FinishedCandidate>& best_first, int64_t keep, RerankBy order);

/// tokens.json: all candidates' tokens, in the order given (of their numbers).
void write_tokens(const std::filesystem::path& path, const std::string& caption, int64_t grid_size,
                  const std::vector<FinishedCandidate>& candidates);

}  // namespace dalle::generation

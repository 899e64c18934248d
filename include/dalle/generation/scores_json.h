// scores.json: which candidates a sampling run drew, how they were scored and by which models. docs/scores_format.md is
// the format; keys keep the order of these structs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace dalle::generation {

using SettingValue = std::variant<bool, int64_t, double, std::string>;

struct ModelUsed {
  std::string role;      // "prior", "dvae", "clip", "tokenizer"
  std::string path;      // as given by the user
  std::string identity;  // hash of tensors and architecture (storage/identity.h)
  int64_t step = -1;     // training step; -1 where unknown
};

struct CandidateScore {
  int64_t rank = 0;       // 1 is best
  int64_t candidate = 0;  // together with the seed and the caption's text it fixes the noise
  double score = 0;       // of the reranker; higher is better
  bool kept = false;
  std::string file;                                    // relative to the folder of scores.json; "" where not written
  std::vector<std::pair<std::string, double>> others;  // further scores by name, for example log_likelihood
};

struct CaptionScores {
  std::string caption;
  std::vector<CandidateScore> candidates;  // any order; written by rank
  std::string contact_sheet;               // relative path, or ""
};

struct ScoresReport {
  std::string command;  // "sample-and-rerank"
  std::string created;  // ISO 8601, UTC; "" leaves it out (tests)
  uint64_t seed = 0;
  std::string score_name;  // what `score` is: "clip", "likelihood" or "none"
  std::vector<std::pair<std::string, SettingValue>> settings;
  std::vector<ModelUsed> models;
  std::vector<std::pair<std::string, double>> times_seconds;  // by phase: load, sample, decode, rerank, write
  std::vector<CaptionScores> captions;
};

/// The file's text. Text that is not UTF-8 has its broken bytes replaced; scores that are not finite become the strings
/// "nan", "inf", "-inf".
std::string scores_json(const ScoresReport& report);

/// Writes DIR/scores.json atomically. Throws FileError.
void write_scores(const std::filesystem::path& directory, const ScoresReport& report);

/// The current time as ISO 8601 in UTC.
std::string utc_time();

}  // namespace dalle::generation

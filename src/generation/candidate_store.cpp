#include "dalle/generation/candidate_store.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/data/image_codec.h"
#include "dalle/generation/picture_writer.h"
#include "score_number.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kJournal = "candidates";
constexpr const char* kLines = ".jsonl";

// As scores.json has them: JSON has no number that is not finite.
double number_of(const Json& json) {
  if (!json.is_string()) return json.get<double>();
  const auto text = json.get<std::string>();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return text == "inf" ? kInfinity : text == "-inf" ? -kInfinity : std::numeric_limits<double>::quiet_NaN();
}

std::string line_of(const FinishedCandidate& candidate) {
  return Json{{"candidate", candidate.number},
              {"score", score_number(candidate.score)},
              {"log_likelihood", score_number(candidate.log_likelihood)},
              {"tokens", candidate.tokens}}
      .dump();
}

// False for a line that is not whole.
bool parse(const std::string& line, FinishedCandidate& candidate) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return false;
  try {
    candidate = {json.at("candidate").get<int64_t>(), number_of(json.at("score")), number_of(json.at("log_likelihood")),
                 json.at("tokens").get<std::vector<int64_t>>()};
  } catch (const Json::exception&) {
    return false;
  }
  return true;
}

}  // namespace

CandidateStore::CandidateStore(fs::path directory, int rank)
    : directory_(std::move(directory)),
      journal_(directory_ / (rank == 0 ? str(kJournal, kLines) : str(kJournal, "-", rank, kLines))) {
  std::error_code error;
  fs::create_directories(directory_, error);
  if (error) {
    throw FileError(Problem{
        .place = directory_.string(), .expected = "a folder that can be made and written", .got = error.message()});
  }
  refresh();
  if (!fs::exists(journal_)) return;
  // The next line must not be appended to half of one.
  const std::string text = read_file(journal_);
  if (!text.empty() && text.back() != '\n') append_line(journal_, "");
}

/// In an order that does not depend on the file system.
std::vector<fs::path> CandidateStore::journals() const {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kJournal) && name.ends_with(kLines)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void CandidateStore::refresh() {
  for (const auto& path : journals()) {
    const std::string text = read_file(path);
    size_t& known = known_[path.filename().string()];  // bytes of lines that need not be read again
    bool all_known = true;
    for (size_t begin = known, end = 0; begin < text.size(); begin = end + 1) {
      end = std::min(text.find('\n', begin), text.size());
      FinishedCandidate candidate;
      const bool is_there =
          parse(text.substr(begin, end - begin), candidate) &&
          (numbers_.contains(candidate.number) || fs::exists(directory_ / picture_name(candidate.number)));
      candidate.tokens = {};  // stay on the disk
      if (is_there && numbers_.insert(candidate.number).second) finished_.push_back(std::move(candidate));
      all_known = all_known && is_there && end < text.size();
      if (all_known) known = end + 1;
    }
  }
}

std::vector<int64_t> CandidateStore::missing(int64_t candidates) const {
  std::vector<int64_t> out;
  for (int64_t number = 0; number < candidates; ++number) {
    if (!numbers_.contains(number)) out.push_back(number);
  }
  return out;
}

void CandidateStore::add(const std::vector<FinishedCandidate>& batch, const Tensor& pictures_N3HW) {
  TORCH_CHECK_VALUE(pictures_N3HW.dim() == 4 && pictures_N3HW.size(0) == static_cast<int64_t>(batch.size()),
                    "[candidate store] ", batch.size(), " candidates and pictures ", pictures_N3HW.sizes());
  for (size_t i = 0; i < batch.size(); ++i) {
    write_png(directory_ / picture_name(batch[i].number), pictures_N3HW[static_cast<int64_t>(i)]);
  }
  for (const auto& candidate : batch) {
    append_line(journal_, line_of(candidate));
    numbers_.insert(candidate.number);
    finished_.push_back({candidate.number, candidate.score, candidate.log_likelihood, {}});
  }
}

std::vector<FinishedCandidate> CandidateStore::with_tokens() const {
  std::map<int64_t, FinishedCandidate> found;
  for (const auto& path : journals()) {
    std::ifstream lines(path);
    for (std::string line; std::getline(lines, line);) {
      FinishedCandidate candidate;
      if (parse(line, candidate) && numbers_.contains(candidate.number)) {
        found.emplace(candidate.number, std::move(candidate));
      }
    }
  }
  std::vector<FinishedCandidate> candidates;
  for (auto& [number, candidate] : found) candidates.push_back(std::move(candidate));
  return candidates;
}

std::string CandidateStore::picture_name(int64_t number) {
  char name[40];
  std::snprintf(name, sizeof name, "candidate-%04lld.png", static_cast<long long>(number));
  return name;
}

Tensor CandidateStore::picture(int64_t number) const {
  return data::decode_picture(read_file(directory_ / picture_name(number)));
}

void CandidateStore::close() {
  std::error_code ignored;
  for (const auto& path : journals()) fs::remove(path, ignored);
}

std::vector<FinishedCandidate> best_first(std::vector<FinishedCandidate> candidates) {
  // What is no number comes last.
  const auto key = [](const FinishedCandidate& candidate) {
    return std::pair(std::isnan(candidate.score) ? 1 : 0, std::isnan(candidate.score) ? 0 : -candidate.score);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&](const auto& a, const auto& b) { return key(a) != key(b) ? key(a) < key(b) : a.number < b.number; });
  return candidates;
}

}  // namespace dalle::generation

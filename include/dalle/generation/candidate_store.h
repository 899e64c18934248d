// The candidates of one caption on disk while they are drawn: each batch's pictures, and then a line for each in
// candidates.jsonl. What is there is seen at once, costs no memory, and is what an interrupted run goes on from. Several ranks
// draw into one folder: each has a file of lines of its own, and reads all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::generation {

struct FinishedCandidate {
  int64_t number = 0;  // it was drawn under
  double score = 0;
  double log_likelihood = 0;
  std::vector<int64_t> tokens;  // [I]
};

class CandidateStore {
 public:
  /// Makes `directory` where it is not there, else reads what is in it, whichever rank wrote it. A line cut short by a kill, and
  /// a candidate whose picture is missing, do not count. Throws FileError.
  explicit CandidateStore(std::filesystem::path directory, int rank = 0);

  /// What this rank finished, in that order, and what it has read of others; without tokens, which take no memory here.
  const std::vector<FinishedCandidate>& finished() const { return finished_; }

  /// The same with tokens, read from the disk, by rising number.
  std::vector<FinishedCandidate> with_tokens() const;

  /// Reads what other ranks have finished since.
  void refresh();

  /// Numbers from 0 to candidates - 1 that are not finished.
  std::vector<int64_t> missing(int64_t candidates) const;

  /// Writes pictures (f32 [N, 3, H, W] in 0..1) and then the lines. Throws FileError; what was finished before stays.
  void add(const std::vector<FinishedCandidate>& batch, const Tensor& pictures_N3HW);

  /// "candidate-0007.png"
  static std::string picture_name(int64_t number);
  /// u8 [H, W, 3].
  Tensor picture(int64_t number) const;

  /// Removes all files of lines: the results are written elsewhere.
  void close();

 private:
  std::vector<std::filesystem::path> journals() const;

  std::filesystem::path directory_, journal_;
  std::vector<FinishedCandidate> finished_;
  std::set<int64_t> numbers_;            // of them
  std::map<std::string, size_t> known_;  // of each file of lines, bytes that were read
};

/// By falling score, equal ones by number; scores that are no number come last.
std::vector<FinishedCandidate> best_first(std::vector<FinishedCandidate> candidates);

}  // namespace dalle::generation

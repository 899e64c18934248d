// The judgement on unusable pictures that loaders share: counted, the first named, too many end the run.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace dalle::data {

struct BadSample {
  int64_t index = 0;
  std::string reason;  // with the sample's place
};

/// Is told of samples in the order of delivery, so that warnings and failures do not depend on threads.
class BadSampleJudge {
 public:
  explicit BadSampleJudge(double max_share) : max_share_(max_share) {}

  /// Warns of the first 20. Throws DataError once more than max_share of the samples looked at were bad, and more than 5 of
  /// them; with a max_share of 0 at the first.
  void add(int64_t num_looked_at, const std::vector<BadSample>& bad);

  /// Samples that an earlier process looked at, whose bad ones were named then.
  void add_earlier(int64_t num_looked_at, int64_t num_bad);

  int64_t num_bad() const { return num_bad_; }
  int64_t num_looked_at() const { return num_looked_at_; }

 private:
  double max_share_;
  int64_t num_bad_ = 0;
  int64_t num_looked_at_ = 0;
  std::set<int64_t> named_;
};

}  // namespace dalle::data

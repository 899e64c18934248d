#include "dalle/data/bad_samples.h"

#include <algorithm>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"

namespace dalle::data {
namespace {

constexpr int64_t kFew = 5;  // bad samples that end no run, unless none are allowed: their share of a few says nothing
constexpr size_t kNamedBad = 20;

}  // namespace

void BadSampleJudge::add(int64_t num_looked_at, const std::vector<BadSample>& bad) {
  num_looked_at_ += num_looked_at;
  num_bad_ += static_cast<int64_t>(bad.size());
  for (const auto& sample : bad) {
    if (named_.size() < kNamedBad && named_.insert(sample.index).second) {
      log_warning(str("unusable picture: ", sample.reason));
    }
  }
  const double share = static_cast<double>(num_bad_) / static_cast<double>(std::max<int64_t>(num_looked_at_, 1));
  if (share > max_share_ && (num_bad_ > kFew || max_share_ == 0)) {
    throw DataError(
        Problem{.place = "pictures",
                .expected = max_share_ == 0 ? "none unusable (max_bad_share: 0)"
                                            : str("at most ", 100 * max_share_, " % unusable (max_bad_share)"),
                .got = str(num_bad_, " of ", num_looked_at_,
                           bad.empty() ? "" : "; the last: ", bad.empty() ? "" : bad.back().reason),
                .hint = "the warnings above name the first of them; mend them or raise data.max_bad_share"});
  }
}

void BadSampleJudge::add_earlier(int64_t num_looked_at, int64_t num_bad) {
  num_looked_at_ += num_looked_at;
  num_bad_ += num_bad;
}

}  // namespace dalle::data

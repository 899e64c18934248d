#include "dalle/distributed/agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "support/rank_processes.h"
#include "support/thrown_message.h"

namespace dalle::distributed {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;
using testing::run_ranks;

TEST(AgreementWorker, DISABLED_Texts) {
  const auto group = init(testing::rank_device(), std::chrono::seconds(60));
  const int rank = group->rank(), size = group->world_size();
  // Of different lengths, one of them empty, with a zero byte.
  const auto text_of = [](int r) { return std::string(static_cast<size_t>(3 * r), 'a') + std::string(r > 0, '\0'); };
  const auto texts = gather_texts(*group, text_of(rank));
  ASSERT_EQ(static_cast<int>(texts.size()), size);
  for (int r = 0; r < size; ++r) EXPECT_EQ(texts[static_cast<size_t>(r)], text_of(r));

  require_agreement(*group, {{"colour", "red", ""}, {"size", "7", ""}});
  const std::string own = rank == 1 ? "blue" : "red";
  const auto message = message_of<ConfigError>([&] {
    require_agreement(*group, {{"size", "7", ""}, {"colour", own, "paint it"}});
  });
  EXPECT_THAT(message, AllOf(HasSubstr("rank 1: expected colour red"), HasSubstr("got blue"), HasSubstr("paint it")));

  int calls = 0;
  const auto told = on_first_rank(*group, [&] { return str("from ", rank, ", call ", ++calls); });
  EXPECT_EQ(told, "from 0, call 1");
  EXPECT_EQ(calls, rank == 0 ? 1 : 0);
  const auto refused =
      message_of<ConfigError>([&] { on_first_rank(*group, []() -> std::string { throw ConfigError("not here"); }); });
  EXPECT_EQ(refused, rank == 0 ? "not here" : "rank 0: not here");
  const auto failed =
      message_of<Error>([&] { on_first_rank(*group, []() -> std::string { throw FileError("disk full"); }); });
  EXPECT_EQ(failed, rank == 0 ? "disk full" : "rank 0: disk full");
}

TEST(Agreement, RanksCompareTexts) {
  run_ranks(2, "AgreementWorker.DISABLED_Texts");
  run_ranks(3, "AgreementWorker.DISABLED_Texts");
}

TEST(Agreement, OneProcessAgreesWithItself) {
  const auto alone = make_singleton();
  EXPECT_EQ(gather_texts(*alone, "x"), std::vector<std::string>{"x"});
  require_agreement(*alone, {{"colour", "red", ""}});
  EXPECT_EQ(on_first_rank(*alone, [] { return std::string("done"); }), "done");
  EXPECT_THROW(on_first_rank(*alone, []() -> std::string { throw DataError("bad"); }), DataError);
}

}  // namespace
}  // namespace dalle::distributed

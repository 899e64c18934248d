#include "dalle/training/task_support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

TEST(TaskSupport, FindsTheTokenizerOfAFileOrARun) {
  const testing::TempDirectory scratch("tokenizer-file");
  EXPECT_THAT(message_of<ConfigError>([&] { tokenizer_file(scratch.path()); }), HasSubstr("train-tokenizer"));
  write_file(scratch / "tokenizer.model", "x");
  EXPECT_EQ(tokenizer_file(scratch.path()), scratch / "tokenizer.model");
  EXPECT_EQ(tokenizer_file(scratch / "tokenizer.model"), scratch / "tokenizer.model");
  EXPECT_THAT(message_of<ConfigError>([&] { tokenizer_file(scratch / "lost.model"); }), HasSubstr("lost.model"));
  EXPECT_THROW(tokenizer_file(""), ConfigError);
}

TEST(TaskSupport, OpensValidationDataWhereThereAreSome) {
  EXPECT_EQ(open_validation({}), nullptr);
  ValidationConfig config{.sources = {emoji("val.tar", 20)}};
  const auto validation = open_validation(config);
  ASSERT_NE(validation, nullptr);
  EXPECT_EQ(validation_size(*validation, config), 20);
  config.max_samples = 7;
  EXPECT_EQ(validation_size(*validation, config), 7);
  config.max_samples = 500;
  EXPECT_EQ(validation_size(*validation, config), 20);
}

TEST(TaskSupport, LoaderOptionsCarryTheSeedAndThePosition) {
  const auto options = loader_options({.seed = 12}, 32, 4, 96, *distributed::make_singleton());
  EXPECT_EQ(options.rank, 0);
  EXPECT_EQ(options.world_size, 1);
  EXPECT_EQ(options.seed, 12U);
  EXPECT_EQ(options.image_size, 32);
  EXPECT_EQ(options.batch_size, 4);
  EXPECT_EQ(options.start_position, 96);
  EXPECT_TRUE(options.shuffle);
}

/// Where it stands, and nothing else.
class Place : public distributed::Communicator {
 public:
  Place(int rank, int world_size) : rank_(rank), world_size_(world_size) {}
  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  void all_reduce_sum(Tensor&) override { throw std::logic_error("not asked for"); }
  void broadcast(Tensor&, int) override { throw std::logic_error("not asked for"); }
  Tensor all_gather(const Tensor&) override { throw std::logic_error("not asked for"); }
  void barrier() override { throw std::logic_error("not asked for"); }
  void await(int) override { throw std::logic_error("not asked for"); }

 private:
  int rank_, world_size_;
};

TEST(TaskSupport, AMicroBatchIsWhatOneRankSeesAtATime) {
  const auto options = loader_options({}, 32, 4, 96, Place(2, 3));
  EXPECT_EQ(options.batch_size, 12);
  EXPECT_EQ(options.rank, 2);
  EXPECT_EQ(options.world_size, 3);
}

TEST(TaskSupport, RanksShareOutBatchesOfEvaluation) {
  for (const int ranks : {1, 2, 3, 7}) {
    for (const int64_t count : {0, 1, 8, 21}) {
      std::vector<int> times(static_cast<size_t>(count), 0);
      for (int rank = 0; rank < ranks; ++rank) {
        const auto batches = own_batches(count, 4, Place(rank, ranks));
        EXPECT_EQ(std::ssize(batches), (count + 4 * ranks - 1) / (4 * ranks)) << "as many on every rank";
        for (const auto& [first, size] : batches) {
          EXPECT_EQ(first % 4, 0) << "the batches of one process";
          EXPECT_EQ(first / 4 % ranks, rank);
          EXPECT_LE(size, 4);
          for (int64_t i = first; i < first + size; ++i) ++times.at(static_cast<size_t>(i));
        }
      }
      EXPECT_EQ(times, std::vector<int>(static_cast<size_t>(count), 1)) << ranks << " ranks";
    }
  }
}

struct Captions {
  std::vector<std::vector<std::string>> all;
  int64_t size() const { return static_cast<int64_t>(all.size()); }
  std::vector<std::string> captions(int64_t index) const { return all.at(static_cast<size_t>(index)); }
};

TEST(TaskSupport, ADataPlanTellsDataSetsApart) {
  const Captions some{{{"a cat", "a pet"}, {"a dog"}, {"a bird"}}};
  EXPECT_THAT(plan_of(some), HasSubstr("3 samples, captions "));
  EXPECT_EQ(plan_of(some), plan_of(Captions{some}));
  EXPECT_NE(plan_of(some), plan_of(Captions{{{"a cat", "a pet"}, {"a dog"}, {"a fish"}}}));
  EXPECT_NE(plan_of(some), plan_of(Captions{{{"a cat"}, {"a dog"}, {"a bird"}}}));
  EXPECT_NE(plan_of(some), plan_of(Captions{{{"a dog"}, {"a cat", "a pet"}, {"a bird"}}}));
}

TEST(TaskSupport, BytesBecomeNumbersFrom0To1) {
  const Tensor unit = to_unit_range(at::tensor({0, 51, 255}, at::kByte), at::kCPU);
  EXPECT_EQ(unit.scalar_type(), at::kFloat);
  EXPECT_TRUE(unit.equal(at::tensor({0.0f, 0.2f, 1.0f})));
}

TEST(TaskSupport, ShortNumbersHaveThreeDigits) {
  EXPECT_EQ(short_number(0.0625), "0.0625");
  EXPECT_EQ(short_number(1234567), "1.23e+06");
  EXPECT_EQ(short_number(1), "1");
}

TEST(TaskSupport, SheetsShowTheFirstSixteenWithTheirLabels) {
  PreparedBatch batch;
  batch.pixels = at::rand({20, 3, 8, 8});
  batch.batch.captions.assign(20, "a picture");
  std::vector<size_t> asked;
  const Sheet sheet = captioned_sheet("inputs", batch, "title", [&](size_t i) {
    asked.push_back(i);
    return std::string("label");
  });
  EXPECT_EQ(sheet.name, "inputs");
  ASSERT_EQ(asked.size(), 16U);
  EXPECT_EQ(asked.back(), 15U);
  const Sheet plain = captioned_sheet("inputs", batch, "title");
  EXPECT_EQ(plain.picture.sizes(), sheet.picture.sizes());
  EXPECT_FALSE(plain.picture.equal(sheet.picture)) << "captions and labels are written under the pictures";
}

}  // namespace
}  // namespace dalle::training

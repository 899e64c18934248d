#include "dalle/training/task_support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  const auto options = loader_options({.seed = 12}, 32, 4, 96);
  EXPECT_EQ(options.seed, 12U);
  EXPECT_EQ(options.image_size, 32);
  EXPECT_EQ(options.batch_size, 4);
  EXPECT_EQ(options.start_position, 96);
  EXPECT_TRUE(options.shuffle);
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

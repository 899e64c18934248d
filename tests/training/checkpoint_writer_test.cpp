#include "dalle/training/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>

#include "dalle/core/error.h"

namespace dalle::training {
namespace {

TEST(CheckpointWriter, NobodyWaitsUntilTheResultIsWanted) {
  CheckpointWriter writer;
  EXPECT_TRUE(writer.is_done());
  EXPECT_EQ(writer.finish(), "");
  std::latch may_end(1);
  writer.start([&] {
    may_end.wait();
    return std::string("written");
  });
  EXPECT_TRUE(writer.has_work());
  EXPECT_FALSE(writer.is_done());  // it waits for this thread
  may_end.count_down();
  EXPECT_EQ(writer.finish(), "written");
  EXPECT_FALSE(writer.has_work());
}

TEST(CheckpointWriter, AnErrorComesOutOfFinish) {
  CheckpointWriter writer;
  writer.start([]() -> std::string { throw FileError("no space"); });
  EXPECT_THROW(writer.finish(), FileError);
  EXPECT_TRUE(writer.is_done());
  writer.start([] { return std::string("again"); });
  EXPECT_EQ(writer.finish(), "again");
}

TEST(CheckpointWriter, ItsEndWaitsForWhatIsUnderWay) {
  std::atomic<bool> has_ended = false;
  {
    CheckpointWriter writer;
    std::latch has_begun(1);
    writer.start([&] {
      has_begun.count_down();
      has_ended = true;
      return std::string();
    });
    has_begun.wait();
  }
  EXPECT_TRUE(has_ended);
}

TEST(CopiedToHost, TrainingDoesNotChangeTheCopies) {
  const Tensor weight = at::ones({3}), flat = at::ones({4});
  const auto tensors = copied_to_host(std::vector<storage::NamedTensor>{{"w", weight}});
  const auto pieces = copied_to_host(std::vector<storage::TensorPiece>{{"w", {8}, {{2, 6}}, {}, flat}});
  weight.fill_(5);
  flat.fill_(5);
  EXPECT_TRUE(at::equal(tensors[0].tensor, at::ones({3})));
  EXPECT_TRUE(at::equal(pieces[0].values, at::ones({4})));
  EXPECT_EQ(pieces[0].ranges, (std::vector<NumberRange>{{2, 6}}));
}

}  // namespace
}  // namespace dalle::training

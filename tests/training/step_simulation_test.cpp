#include "dalle/training/step_simulation.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>

namespace dalle::training {
namespace {

using ::testing::ElementsAre;

StepTask task(Stream stream, double seconds, std::vector<size_t> after = {}) {
  return {"task", stream, seconds, 0, std::move(after)};
}

TEST(StepSimulation, StreamsOverlapAndATaskWaitsForAllBeforeIt) {
  const std::vector<StepTask> tasks{task(Stream::kCompute, 2), task(Stream::kLink, 3),
                                    task(Stream::kCompute, 1, {0, 1}), task(Stream::kMachine, 4, {0})};
  const Timeline line = simulate(tasks);
  EXPECT_THAT(line.start, ElementsAre(0, 0, 3, 2));
  EXPECT_EQ(line.seconds, 6);
  EXPECT_THAT(line.busy, ElementsAre(3, 3, 4));
  EXPECT_EQ(line.waiting(), 3);
}

TEST(StepSimulation, AStreamDoesOneTaskAtATimeAndTheFirstListedFirst) {
  const std::vector<StepTask> tasks{task(Stream::kCompute, 1), task(Stream::kLink, 1), task(Stream::kLink, 5, {0}),
                                    task(Stream::kLink, 1, {0})};
  EXPECT_THAT(simulate(tasks).start, ElementsAre(0, 0, 1, 6));
}

TEST(StepSimulation, ATaskThatCannotRunYetBlocksNone) {
  const std::vector<StepTask> tasks{task(Stream::kCompute, 5), task(Stream::kLink, 1, {0}), task(Stream::kLink, 2)};
  EXPECT_THAT(simulate(tasks).start, ElementsAre(0, 5, 0));
}

TEST(StepSimulation, APipelineTakesItsLongestStageTimesItsLength) {
  std::vector<StepTask> tasks;
  for (size_t i = 0; i < 10; ++i) {
    tasks.push_back(task(Stream::kLink, 2));
    tasks.push_back(task(Stream::kCompute, 1, {2 * i}));
  }
  EXPECT_EQ(simulate(tasks).seconds, 21);
}

TEST(StepSimulation, ATaskMayNotWaitForALaterOne) {
  EXPECT_THROW(simulate(std::vector<StepTask>{task(Stream::kLink, 1, {0})}), c10::ValueError);
  EXPECT_EQ(simulate({}).seconds, 0);
}

}  // namespace
}  // namespace dalle::training

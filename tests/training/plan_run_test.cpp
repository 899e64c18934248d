#include "dalle/training/plan_run.h"

#include <gmock/gmock.h>

#include "dalle/core/files.h"
#include "support/temp_directory.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::filesystem::path kConfigs = std::filesystem::path(DALLE_SOURCE_DIR) / "configs";

TEST(PlanRun, APlanNamesEveryKind) {
  const PlanRunOptions options{.config = kConfigs / "paper/prior.yaml",
                               .devices = 1024,
                               .device = "v100",
                               .sharding = Sharding::kHybrid,
                               .powersgd_rank = 896,
                               .precision = Precision::kFp16,
                               .state_in_16_bits = true,
                               .average_on_host = true};
  EXPECT_THAT(plan_text(options),
              AllOf(HasSubstr("parameters: 12,292,840,960"), HasSubstr("error buffers"), HasSubstr("activations"),
                    HasSubstr("logits"), HasSubstr("factors"), HasSubstr("with PowerSGD of rank 896: "),
                    HasSubstr("compression rate 85.9 %"), HasSubstr("then sent: "), HasSubstr("a step takes "),
                    HasSubstr("days to step 430,000"), HasSubstr("micro-batch")));
}

TEST(PlanRun, TheConfigsLayoutCountsUnlessAFlagSaysOtherwise) {
  PlanRunOptions options{.config = kConfigs / "paper/prior.yaml", .devices = 1024, .device = "v100"};
  EXPECT_THAT(plan_text(options), AllOf(HasSubstr("1024 x V100 SXM2 16 GB, sharding hybrid, matrices in fp16"),
                                        HasSubstr("PowerSGD of rank 896")));
  options.sharding = Sharding::kNone;
  EXPECT_THAT(plan_text(options), HasSubstr("1024 x V100 SXM2 16 GB, sharding none"));
  options.sharding.reset();
  options.devices = 4;  // half a machine, one replica: nothing to compress
  EXPECT_THAT(plan_text(options), AllOf(HasSubstr("4 x V100 SXM2 16 GB, sharding hybrid"), Not(HasSubstr("PowerSGD"))));
}

TEST(PlanRun, AConfigsGroupsThatAreNoMachinesAreRefused) {
  const testing::TempDirectory folder("plan-run");
  std::string text = read_file(kConfigs / "paper/prior.yaml");
  const std::string key = "shard_group_size: ";
  text.replace(text.find(key + "8"), key.size() + 1, key + "4");
  write_file(folder / "prior.yaml", text);
  EXPECT_THAT(testing::message_of<ConfigError>(
                  [&] { plan_text({.config = folder / "prior.yaml", .devices = 16, .device = "v100"}); }),
              AllOf(HasSubstr("trainer.shard_group_size"), HasSubstr("8, the devices of a machine"),
                    HasSubstr("--sharding hybrid")));
}

TEST(PlanRun, TheScalingTableGoesFromOneDeviceTo1024) {
  const std::string text = plan_text({.config = kConfigs / "prior/1.2b.yaml", .device = "h100", .scaling = true});
  EXPECT_THAT(text, AllOf(HasSubstr("\n| 1 | "), HasSubstr("\n| 8 | "), HasSubstr("\n| 1024 | "), HasSubstr("100 %")));
}

TEST(PlanRun, WrongConfigsAreNamed) {
  EXPECT_THAT(testing::message_of<ConfigError>([] { plan_text({}); }), HasSubstr("a config of train-prior"));
  for (const std::string kind : {"dvae", "clip"}) {
    EXPECT_THAT(
        testing::message_of<ConfigError>([&] { plan_text({.config = kConfigs / ("paper/" + kind + ".yaml")}); }),
        AllOf(HasSubstr(kind + ".yaml"), HasSubstr("one of train-" + kind), HasSubstr("priors alone")));
  }
  EXPECT_THAT(testing::message_of<ConfigError>([] { plan_text({.config = kConfigs / "devices/v100.yaml"}); }),
              HasSubstr("v100.yaml"));
  EXPECT_THAT(testing::message_of<ConfigError>(
                  [] { plan_text({.config = kConfigs / "paper/prior.yaml", .device = "abacus"}); }),
              HasSubstr("'abacus'"));
}

}  // namespace
}  // namespace dalle::training

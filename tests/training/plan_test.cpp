// The plan against the paper's layout, published step times, and tensors that were counted.
#include "dalle/training/plan.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <numeric>

#include "dalle/core/tensor_memory.h"
#include "dalle/layers/scaled_runner.h"
#include "dalle/optim/adamw.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

const fs::path kConfigs = fs::path(DALLE_SOURCE_DIR) / "configs";

Plan plan_of(const std::string& config, const std::string& device, const PlanLayout& layout,
             Precision precision = Precision::kAuto) {
  auto training = config::load_config_file<PriorTraining>(kConfigs / config);
  if (precision != Precision::kAuto) training.precision = precision;
  return Plan(training, training.model, load_device(device, DALLE_SOURCE_DIR), layout);
}

at::ScalarType dtype_of(const PriorTraining& config) {
  return config.precision == Precision::kBf16   ? at::kBFloat16
         : config.precision == Precision::kFp16 ? at::kHalf
                                                : at::kFloat;
}

const PlanLayout kPaper{.num_devices = 1024,
                        .sharding = Sharding::kHybrid,
                        .powersgd_rank = 896,
                        .state_in_16_bits = true,
                        .average_on_host = true};

TEST(Plan, ThePapersLayoutTakesTwelveGigabytesOfState) {
  const Plan plan = plan_of("paper/prior.yaml", "v100", kPaper, Precision::kFp16);
  EXPECT_NEAR(plan.memory().state() / 12e9, 1, 0.1);
  EXPECT_NEAR(plan.memory().error_buffers / 3e9, 1, 0.1);
  EXPECT_EQ(plan.num_parameters(), 12'292'840'960);
  EXPECT_EQ(plan.num_replicas(), 128);
}

TEST(Plan, CompressionIsThatOfTheTable) {
  // 1 - 5 r / (8 d) for eight shards (paper, table 1).
  const Plan plan = plan_of("paper/prior.yaml", "v100", kPaper, Precision::kFp16);
  EXPECT_NEAR(plan.compression_rate(), 1 - 5.0 * 896 / (8 * 3968), 1e-9);
}

TEST(Plan, PublishedStepTimesOnEightH100) {
  const Plan gpt2 = plan_of("plan/gpt2_1558m.yaml", "h100", {.num_devices = 8, .sharding = Sharding::kOptimizer});
  EXPECT_NEAR(gpt2.num_parameters() / 1.558e9, 1, 0.01);
  EXPECT_NEAR(simulate(gpt2.schedule()).seconds / 2.80, 1, 0.25);
  const Plan mpt = plan_of("plan/mpt_1b.yaml", "h100", {.num_devices = 8, .sharding = Sharding::kFull});
  EXPECT_NEAR(mpt.num_parameters() / 1.31e9, 1, 0.02);
  const double tokens = 512.0 * 1024 / 8;
  EXPECT_NEAR(simulate(mpt.schedule()).seconds / (tokens / 48'910), 1, 0.25);
}

/// The peak of the trainer's steps from nothing, counted at the allocator.
double measured_bytes(const PriorTraining& config) {
  const bool is_fp16 = config.precision == Precision::kFp16;
  models::Prior prior(config.model, {dtype_of(config), is_fp16 ? at::kFloat : dtype_of(config)});
  layers::ScaledRunner scaled([](int64_t) { return at::scalar_tensor(8192.0f); });
  layers::BlockRunner& runner = is_fp16 ? scaled : layers::plain_runner();
  return static_cast<double>(peak_tensor_bytes([&] {
    prior.materialize(at::kCPU);
    prior.initialize(0);
    optim::AdamW optimizer(prior.named_parameters(), config.optimizer);
    const int64_t batch = config.trainer.batch_size, micro_batch = config.trainer.micro_size();
    const Tensor captions = at::zeros({micro_batch, config.model.max_caption_tokens()}, at::kLong);
    const Tensor images = at::zeros({micro_batch, config.model.image_context()}, at::kLong);
    for (int step = 0; step < 2; ++step) {
      optimizer.zero_grad();
      for (int64_t done = 0; done < batch; done += micro_batch) {
        const auto loss = prior.loss(captions, images, {}, runner);
        (loss.text + loss.image).backward();
      }
      optimizer.step(1e-3);
    }
  }));
}

TEST(Plan, MemoryOfSmallRunsIsWhatIsMeasured) {
  PriorTraining config;
  config.trainer.ema_decay = 0;
  DeviceDescription device = load_device("cpu", DALLE_SOURCE_DIR);
  device.fp16_flops = device.f32_flops;
  for (const Precision precision : {Precision::kF32, Precision::kBf16, Precision::kFp16}) {
    config.precision = precision;
    config.head_precision = precision == Precision::kFp16 ? Precision::kF32 : precision;
    for (const int64_t dim : {128, 256}) {
      if (precision == Precision::kFp16 && dim > 128) continue;  // slow on a CPU
      config.model = {.text_context = 32,
                      .text_vocab_size = 512,
                      .grid_size = 16,
                      .image_vocab_size = 512,
                      .dim = dim,
                      .num_heads = 4,
                      .num_layers = 4};
      for (const auto& [batch, micro_batch] : {std::pair{1, 1}, std::pair{4, 4}, std::pair{16, 16}, std::pair{8, 4}}) {
        config.trainer.batch_size = batch;
        config.trainer.micro_batch_size = micro_batch;
        const Plan plan(config, config.model, device, {});
        const double measured = measured_bytes(config);
        EXPECT_NEAR(plan.memory().total() / measured, 1, 0.1)
            << enum_name(precision) << ", dim " << dim << ", batch " << batch << " by " << micro_batch;
      }
    }
  }
}

TEST(Plan, ShardingDividesWhatItNames) {
  const auto memory = [](Sharding sharding) {
    return plan_of("prior/1.2b.yaml", "h100", {.num_devices = 16, .sharding = sharding}).memory();
  };
  const auto none = memory(Sharding::kNone), optimizer = memory(Sharding::kOptimizer), full = memory(Sharding::kFull),
             hybrid = memory(Sharding::kHybrid);
  EXPECT_EQ(optimizer.weights, none.weights);
  EXPECT_DOUBLE_EQ(optimizer.moments, none.moments / 16);
  EXPECT_DOUBLE_EQ(full.weights, none.weights / 16);
  EXPECT_DOUBLE_EQ(full.gradients, none.gradients / 16);
  EXPECT_DOUBLE_EQ(hybrid.weights, none.weights / 8);
  EXPECT_EQ(none.gathered, 0);
}

TEST(Plan, TheLargestMicroBatchFitsAndTheNextDoesNot) {
  const Plan plan = plan_of("prior/1.2b.yaml", "h100", {.num_devices = 8, .sharding = Sharding::kFull});
  const int64_t largest = plan.largest_micro_batch();
  ASSERT_GT(largest, 0);
  EXPECT_LE(plan.memory(largest).total(), plan.usable_memory());
  EXPECT_EQ(plan_of("prior/12b.yaml", "v100", {.num_devices = 8}).largest_micro_batch(), 0);
}

TEST(Plan, PowerSgdSendsLessAndAllOfItCounts) {
  PlanLayout plain = kPaper;
  plain.powersgd_rank = 0;
  const auto machine_bytes = [](const PlanLayout& layout) {
    const Timeline line = simulate(plan_of("paper/prior.yaml", "v100", layout, Precision::kFp16).schedule());
    return line.bytes[static_cast<size_t>(Stream::kMachine)];
  };
  // Two parts of a ring over 128 machines; others than blocks' matrices stay in f32.
  const Plan plan = plan_of("paper/prior.yaml", "v100", plain, Precision::kFp16);
  double matrices = 0, others = 0;
  for (const auto& unit : plan.units()) matrices += unit.matrix_numbers(), others += unit.other_numbers;
  EXPECT_NEAR(machine_bytes(plain) / (2 * 127 / 128.0 * (2 * matrices + 4 * others)), 1, 1e-9);
  const double rate = plan_of("paper/prior.yaml", "v100", kPaper, Precision::kFp16).compression_rate();
  EXPECT_NEAR(machine_bytes(kPaper) / (2 * 127 / 128.0 * (2 * matrices * (1 - rate) + 4 * others)), 1, 1e-9);
}

TEST(Plan, GradientsThatFitOneBucketAreSentWhenAllAreThere) {
  PriorTraining config;
  config.trainer.batch_size = 2;
  config.model = {.text_context = 32,
                  .text_vocab_size = 512,
                  .grid_size = 16,
                  .image_vocab_size = 512,
                  .dim = 256,
                  .num_heads = 4,
                  .num_layers = 4};
  DeviceDescription device = load_device("cpu", DALLE_SOURCE_DIR);
  device.link_latency_seconds = 0;
  const Plan plan(config, config.model, device, {.num_devices = 2});
  const auto tasks = plan.schedule();
  const Timeline line = simulate(tasks);
  const double bytes = 4 * plan.num_parameters();
  EXPECT_DOUBLE_EQ(line.bytes[static_cast<size_t>(Stream::kLink)], bytes);  // half of it twice
  EXPECT_NEAR(line.waiting(), bytes / device.link_bandwidth, 1e-9);
}

TEST(Plan, LayoutsThatDoNotWorkAreRefused) {
  const auto refused = [](const PlanLayout& layout) {
    return testing::message_of<ConfigError>([&] { plan_of("paper/prior.yaml", "h100", layout); });
  };
  EXPECT_THAT(refused({.num_devices = 12}), AllOf(HasSubstr("whole machines of 8 devices"), HasSubstr("got 12")));
  EXPECT_THAT(refused({.num_devices = 3}), HasSubstr("a divisor of trainer.batch_size 1024"));
  EXPECT_THAT(refused({.num_devices = 8, .micro_batch_size = 3}), HasSubstr("a divisor of a device's 128 samples"));
  EXPECT_THAT(refused({.num_devices = 8, .sharding = Sharding::kFull, .powersgd_rank = 8}), HasSubstr("one replica"));
  EXPECT_THAT(testing::message_of<ConfigError>([&] { plan_of("paper/prior.yaml", "v100", {}, Precision::kBf16); }),
              HasSubstr("choose --precision"));
}

}  // namespace
}  // namespace dalle::training

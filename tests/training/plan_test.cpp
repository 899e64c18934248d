// The plan against the paper's layout, published step times, and tensors that were counted.
#include "dalle/training/plan.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <numeric>

#include "dalle/core/tensor_memory.h"
#include "dalle/layers/scaled_runner.h"
#include "dalle/optim/adamw.h"
#include "dalle/training/sharded_model.h"
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

/// The paper's prior on 16 devices, with what its config says of compression replaced.
Plan compressed_plan(const CompressionConfig& compression, PlanLayout layout) {
  auto training = config::load_config_file<PriorTraining>(kConfigs / "paper/prior.yaml");
  training.trainer.gradient_compression = compression;
  layout.num_devices = 16;
  return Plan(training, training.model, load_device("v100", DALLE_SOURCE_DIR), layout);
}

CompressionSizes trained_sizes(const CompressionConfig& compression, int64_t group) {
  const auto training = config::load_config_file<PriorTraining>(kConfigs / "paper/prior.yaml");
  const models::Prior prior(training.model);
  const auto parameters = prior.named_parameters();
  CompressionSizes sizes;
  for (int64_t part = 0; part < group; ++part) {
    const auto pieces = group == 1 ? whole_pieces(parameters) : pieces_of_part(parameters, group, part);
    sizes += compression_sizes(pieces, compression);
  }
  return sizes;
}

TEST(Plan, MatricesAreCutAsInTraining) {
  // 1 - 5 r / (8 d) for eight shards (paper, table 1).
  const CompressionConfig shards{{.rank = 896}, true, 8}, parts{{.rank = 896}, true};
  const Plan none = compressed_plan(shards, {});
  EXPECT_NEAR(none.compression_rate(), 1 - 5.0 * 896 / (8 * 3968), 1e-9);
  EXPECT_EQ(none.compressed().describe(896), trained_sizes(shards, 1).describe(896));
  // The parts of a machine's ranks are such shards.
  const Plan hybrid = compressed_plan(parts, {.sharding = Sharding::kHybrid});
  EXPECT_EQ(hybrid.compressed().describe(896), trained_sizes(parts, 8).describe(896));
  EXPECT_EQ(hybrid.compressed().describe(896), none.compressed().describe(896));
  EXPECT_NEAR(hybrid.compression_rate(), 1 - 5.0 * 896 / (8 * 3968), 1e-9);
}

TEST(Plan, CompressionIsTheConfigsUnlessTheLayoutSaysOtherwise) {
  const CompressionConfig small{{.rank = 64, .error_buffers = distributed::ErrorFormat::kF16}, true, 8};
  const Plan plan = compressed_plan(small, {}), wider = compressed_plan(small, {.powersgd_rank = 128});
  EXPECT_EQ(plan.compression().rank, 64);
  EXPECT_NEAR(wider.compression_rate(), 1 - 5.0 * 128 / (8 * 3968), 1e-9);
  EXPECT_EQ(wider.memory().error_buffers, plan.memory().error_buffers) << "1-6-9 floats in both";
  auto large = small;
  large.error_buffers = distributed::ErrorFormat::kF32;
  EXPECT_EQ(compressed_plan(large, {}).memory().error_buffers, 2 * plan.memory().error_buffers);
  const Plan off = compressed_plan(small, {.powersgd_rank = 0});
  EXPECT_FALSE(off.compression().enabled);
  EXPECT_EQ(off.compression_rate(), 0);
  EXPECT_EQ(off.memory().error_buffers + off.memory().factors, 0);
  EXPECT_EQ(off.memory().gradients, plan.memory().gradients);
  auto training = config::load_config_file<PriorTraining>(kConfigs / "paper/prior.yaml");  // enables it
  const auto device = load_device("v100", DALLE_SOURCE_DIR);
  EXPECT_EQ(Plan(training, training.model, device, {.num_devices = 16}).compression().rank, 896);
  EXPECT_FALSE(Plan(training, training.model, device, {}).compression().enabled) << "one device";
  EXPECT_THAT(testing::message_of<ConfigError>([&] { compressed_plan(small, {.sharding = Sharding::kFull}); }),
              HasSubstr("--powersgd-rank 0"));
  EXPECT_THAT(testing::message_of<ConfigError>([&] { compressed_plan(small, {.powersgd_rank = 100}); }),
              HasSubstr("a rank that num_shards 8 divides, got rank 100"));
}

TEST(Plan, BytesOfCompressionAreThoseOfItsTensors) {
  PriorTraining config;
  config.trainer.batch_size = 2;
  config.model = {.text_context = 32,
                  .text_vocab_size = 512,
                  .grid_size = 8,
                  .image_vocab_size = 512,
                  .dim = 128,
                  .num_heads = 2,
                  .num_layers = 3};
  for (const auto format : {distributed::ErrorFormat::kF32, distributed::ErrorFormat::kF16}) {
    config.trainer.gradient_compression = {{.rank = 16, .error_buffers = format}, true, 2};
    const Plan plan(config, config.model, load_device("cpu", DALLE_SOURCE_DIR), {.num_devices = 2});
    const models::Prior prior(config.model);
    const auto matrices =
        compressed_matrices(whole_pieces(prior.named_parameters()), config.trainer.gradient_compression);
    const distributed::PowerSgd powersgd(matrices, config.trainer.gradient_compression, 0, at::kFloat);
    const auto factors = 4 * static_cast<double>(plan.compressed().factors);  // of an update
    EXPECT_GT(plan.memory().error_buffers, 0);
    EXPECT_EQ(plan.memory().error_buffers + plan.memory().factors,
              static_cast<double>(powersgd.state_bytes()) + factors);
  }
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
  const CompressionSizes sizes = plan_of("paper/prior.yaml", "v100", kPaper, Precision::kFp16).compressed();
  const auto factors = static_cast<double>(sizes.factors), exact = static_cast<double>(sizes.all - sizes.elements);
  EXPECT_NEAR(machine_bytes(kPaper) / (2 * 127 / 128.0 * (2 * factors + 4 * exact)), 1, 1e-9);
  EXPECT_LT(machine_bytes(kPaper), 0.3 * machine_bytes(plain));
}

TEST(Plan, SixteenBitFactorsOfAllReplicasAreGathered) {
  const auto sent = [](distributed::ErrorFormat factors, int64_t rank) {
    const Plan plan = compressed_plan({{.rank = 896, .factors = factors}, true},
                                      {.sharding = Sharding::kHybrid, .powersgd_rank = rank});
    return simulate(plan.schedule()).bytes[static_cast<size_t>(Stream::kMachine)];
  };
  // Of two machines: half of four bytes twice, or two bytes once.
  const double floats = sent(distributed::ErrorFormat::kF32, 896), small = sent(distributed::ErrorFormat::kF16, 896);
  const auto factors = static_cast<double>(trained_sizes({{.rank = 896}, true}, 8).factors);
  EXPECT_NEAR((floats - small) / (4 * factors - 2 * factors), 1, 1e-9);
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

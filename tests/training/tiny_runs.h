// Tiny trainings on the shipped pictures, shared by this layer's tests: 16x16 pixels, 4x4 tokens of 16 codes.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/text/tokenizer_trainer.h"
#include "dalle/training/clip_task.h"
#include "dalle/training/dvae_task.h"
#include "dalle/training/prior_task.h"
#include "dalle/training/trainer.h"
#include "support/temp_directory.h"
#include "support/tensor_matchers.h"
#include "support/thrown_message.h"

namespace dalle::training {

using testing::message_of;

namespace fs = std::filesystem;

template <class Config>
struct TaskFor;
template <>
struct TaskFor<DvaeTraining> {
  using Type = DvaeTask;
};
template <>
struct TaskFor<ClipTraining> {
  using Type = ClipTask;
};
template <>
struct TaskFor<PriorTraining> {
  using Type = PriorTask;
};
template <class Config>
using TaskOf = typename TaskFor<Config>::Type;

// ------------------------------------------------------------------------------------------------------------ configs

inline data::SourceConfig emoji(const std::string& file, int64_t max_samples) {
  return {fs::path(DALLE_SOURCE_DIR) / "data/emoji" / file, max_samples};
}

/// Everything that the trainings have in common. Every step is logged.
template <class Config>
Config tiny_base(int64_t num_steps) {
  Config config;
  config.trainer = {.num_steps = num_steps,
                    .batch_size = 4,
                    .seed = 3,
                    .clip_norm = 1,
                    .ema_decay = 0.9,
                    .log_interval_steps = 1,
                    .checkpoint_interval_steps = 0,
                    .keep_checkpoints = 0};
  config.precision = Precision::kF32;
  config.data.sources = {emoji("train.tar", 32)};
  config.data.augmentation = data::Augmentation::kStage2;
  config.data.prefetch_batches = 2;
  config.validation.sources = {emoji("val.tar", 16)};
  config.validation.max_samples = 8;
  config.validation.batch_size = 4;
  config.learning_rate = {
      .type = optim::ScheduleType::kCosine, .start = 4e-3, .end = 1e-4, .steps = 30, .warmup_steps = 2};
  return config;
}

inline DvaeTraining tiny_dvae(int64_t num_steps = 10) {
  auto config = tiny_base<DvaeTraining>(num_steps);
  config.data.augmentation = data::Augmentation::kStage1;
  config.data.horizontal_flip = true;
  config.model = {.image_size = 16,
                  .vocab_size = 16,
                  .hidden_dim = 8,
                  .num_groups = 3,
                  .num_blocks_per_group = 1,
                  .decoder_init_dim = 8};
  config.relaxation = {.temperature_start = 1,
                       .temperature_end = 0.25,
                       .temperature_steps = 20,
                       .kl_weight_end = 6.6,
                       .kl_weight_steps = 8};
  return config;
}

/// The same with the codebook of VQ-VAE.
inline DvaeTraining tiny_vq(int64_t num_steps = 10) {
  auto config = tiny_dvae(num_steps);
  config.model.quantizer = models::Quantizer::kVq;
  config.vector_quantizer = {.codebook_decay = 0.8, .commitment_weight = 0.25, .restart_share = 0.2};
  return config;
}

/// The models that the later stages read, made once per process: a tokenizer, and an untrained dVAE.
struct Parts {
  testing::TempDirectory scratch{"training-parts"};
  fs::path tokenizer = make_tokenizer("tokenizer.model", 330);
  fs::path other_tokenizer = make_tokenizer("other-tokenizer.model", 320);
  fs::path dvae = make_dvae("dvae", 5);
  fs::path other_dvae = make_dvae("other-dvae", 6);

  fs::path make_tokenizer(const std::string& name, int64_t vocab_size) const {
    const auto captions = data::Dataset({emoji("train.tar", 64)}).all_captions();
    write_file(scratch / name, text::train_tokenizer(captions, {.vocab_size = vocab_size}));
    return scratch / name;
  }
  fs::path make_dvae(const std::string& name, uint64_t seed) const;
};

inline const Parts& parts() {
  static const Parts instance;
  return instance;
}

inline ClipTraining tiny_clip(int64_t num_steps = 10) {
  auto config = tiny_base<ClipTraining>(num_steps);
  config.model = {.image_size = 16,
                  .patch_size = 4,
                  .vision_dim = 16,
                  .vision_layers = 1,
                  .vision_heads = 2,
                  .text_context = 8,
                  .text_vocab_size = 0,
                  .text_dim = 16,
                  .text_layers = 1,
                  .text_heads = 2,
                  .embed_dim = 8};
  config.tokenizer = parts().tokenizer;
  config.bpe_dropout = 0.2;
  config.dvae = parts().dvae;
  config.reconstructed_share = 0.5;
  config.shift_pixels = 1;
  return config;
}

inline PriorTraining tiny_prior(int64_t num_steps = 10) {
  auto config = tiny_base<PriorTraining>(num_steps);
  config.model = {.text_context = 10,
                  .text_vocab_size = 0,
                  .grid_size = 0,
                  .image_vocab_size = 0,
                  .dim = 16,
                  .num_heads = 2,
                  .num_layers = 4,
                  .conv_kernel = 3,
                  .init_scale = 1};
  config.tokenizer = parts().tokenizer;
  config.dvae = parts().dvae;
  config.bpe_dropout = 0.2;
  config.preview_captions = 1;
  return config;
}

// --------------------------------------------------------------------------------------------------------------- runs

/// A task's model as at the start of a run.
inline void start(TrainingTask& task) {
  task.module().materialize(at::kCPU);
  task.module().initialize(4);
}

template <class Config>
TrainerSetup setup_of(const Config& config, bool resume = false) {
  return {.trainer = config.trainer,
          .optimizer = config.optimizer,
          .learning_rate = config.learning_rate,
          .resolved_config = config::emit_yaml(config::dump(config)),
          .resume = resume};
}

/// Trains `task` in the run directory `root`; what Trainer::run returns.
template <class Config>
bool train_task(TrainingTask& task, const Config& config, const fs::path& root, bool resume = false,
                std::optional<int64_t> finite_check_delay = {}) {
  set_console_level(LogLevel::kError);
  const auto communicator = distributed::make_singleton();
  auto setup = setup_of(config, resume);
  setup.finite_check_delay = finite_check_delay;
  const std::string yaml = setup.resolved_config;
  Trainer trainer(std::move(setup), task, *communicator);
  RunDirectory run = resume ? RunDirectory::open(root) : RunDirectory::create(root, yaml);
  return trainer.run(run);
}

template <class Config>
bool train(const Config& config, const fs::path& root, bool resume = false) {
  TaskOf<Config> task(config, at::kCPU);
  return train_task(task, config, root, resume);
}

inline fs::path Parts::make_dvae(const std::string& name, uint64_t seed) const {
  auto config = tiny_dvae(/*num_steps=*/0);
  config.validation.sources.clear();
  config.trainer.seed = static_cast<int64_t>(seed);
  train(config, scratch / name);
  return scratch / name;
}

/// A task that lets a test look at, stop or spoil what passes between another task and the loop.
class WatchedTask : public TrainingTask {
 public:
  explicit WatchedTask(TrainingTask& task) : task_(task) {}
  std::function<void(int64_t step)> before_step;
  std::function<void(int64_t step, StepOutput& output)> after_step;

  StepOutput training_step(const PreparedBatch& batch, const StepContext& context) override {
    if (before_step) before_step(context.step);
    StepOutput output = task_.training_step(batch, context);
    if (after_step) after_step(context.step, output);
    return output;
  }
  std::string kind() const override { return task_.kind(); }
  layers::Module& module() override { return task_.module(); }
  std::string model_config_yaml() const override { return task_.model_config_yaml(); }
  at::Device device() const override { return task_.device(); }
  std::unique_ptr<data::BatchStream> make_loader(int64_t size, int64_t start) override {
    return task_.make_loader(size, start);
  }
  PreparedBatch prepare(data::Batch batch, const StepContext& context) override {
    return task_.prepare(std::move(batch), context);
  }
  std::vector<double> counts(const PreparedBatch& batch) const override { return task_.counts(batch); }
  void after_update(const Tensor& skip) override { task_.after_update(skip); }
  void begin_step(const std::vector<PreparedBatch>& batches, const StepContext& context) override {
    task_.begin_step(batches, context);
  }
  void join(distributed::Communicator& ranks) override { task_.join(ranks); }
  void leave() override { task_.leave(); }
  std::string data_plan() const override { return task_.data_plan(); }
  std::string validation_plan() const override { return task_.validation_plan(); }
  Metrics batch_values() override { return task_.batch_values(); }
  std::vector<HealthRule> health_rules() const override { return task_.health_rules(); }
  Metrics schedule_values(int64_t step) const override { return task_.schedule_values(step); }
  Metrics evaluate(int64_t step, layers::BlockRunner& runner) override { return task_.evaluate(step, runner); }
  bool has_previews() const override { return task_.has_previews(); }
  std::vector<std::string> validation_names() const override { return task_.validation_names(); }
  std::vector<Sheet> validation_sheets(int64_t step) override { return task_.validation_sheets(step); }
  bool previews_with_validation() const override { return task_.previews_with_validation(); }
  TrainingCost cost() const override { return task_.cost(); }
  bool needs_gradient_scaling() const override { return task_.needs_gradient_scaling(); }
  std::vector<Sheet> preview(int64_t step) override { return task_.preview(step); }
  Sheet input_sheet(const PreparedBatch& batch) override { return task_.input_sheet(batch); }
  std::pair<std::string, int64_t> throughput_unit() const override { return task_.throughput_unit(); }
  std::map<std::string, std::string> identities() const override { return task_.identities(); }
  std::string tokenizer_bytes() const override { return task_.tokenizer_bytes(); }

 private:
  TrainingTask& task_;
};

// ------------------------------------------------------------------------------------------------------------ results

/// The lines of metrics.jsonl with this phase ("" is all).
inline std::vector<nlohmann::ordered_json> metrics_of_all_keys(const fs::path& root, const std::string& phase = "") {
  std::istringstream text(read_file(root / "metrics.jsonl"));
  std::vector<nlohmann::ordered_json> lines;
  for (std::string line; std::getline(text, line);) {
    auto entry = nlohmann::ordered_json::parse(line);
    if (phase.empty() || entry["phase"] == phase) lines.push_back(std::move(entry));
  }
  return lines;
}

/// The same without what depends on the clock.
inline std::vector<nlohmann::ordered_json> metrics_of(const fs::path& root, const std::string& phase = "") {
  auto lines = metrics_of_all_keys(root, phase);
  for (auto& entry : lines) {
    for (const char* key :
         {"time", "data_wait_share", "prepare_share", "images_per_second", "pairs_per_second", "tokens_per_second"})
      entry.erase(key);
  }
  return lines;
}

/// One value of every training line, in order.
inline std::vector<double> train_values(const fs::path& root, const std::string& name) {
  std::vector<double> values;
  for (const auto& line : metrics_of(root, "train")) values.push_back(line.at(name).get<double>());
  return values;
}

inline storage::Checkpoint latest(const fs::path& root) { return storage::load_latest_good(root).checkpoint; }

/// Same names in the same order, each bit the same.
inline void expect_same_tensors(const std::vector<storage::NamedTensor>& actual,
                                const std::vector<storage::NamedTensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(actual[i].name, expected[i].name);
    EXPECT_TRUE(testing::bitwise_equal(actual[i].tensor, expected[i].tensor)) << expected[i].name;
  }
}

}  // namespace dalle::training

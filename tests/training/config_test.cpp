// Every shipped config loads, survives being written and read again, and builds its model without memory.
#include "dalle/training/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "dalle/core/str.h"
#include "dalle/models/summary.h"
#include "dalle/training/device_description.h"
#include "dalle/training/encode_job.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const fs::path kConfigs = fs::path(DALLE_SOURCE_DIR) / "configs";

/// Loads, dumps, loads the dump and dumps again.
template <class Config>
Config round_trip(const fs::path& path) {
  const auto config = config::load_config_file<Config>(path);
  const auto dumped = config::dump(config);
  const std::string text = config::emit_yaml(dumped);
  const auto again = config::dump(config::load_config<Config>(config::parse_yaml(text, "dump of " + path.string())));
  EXPECT_EQ(config::emit_yaml(again), text) << path;
  for (const auto& difference : config::diff(dumped, again)) ADD_FAILURE() << path << ": " << difference.path;
  return config;
}

void expect_on_meta(const layers::Module& model) {
  for (const auto& [name, parameter] : model.named_parameters()) EXPECT_TRUE(parameter->tensor.is_meta()) << name;
}

int64_t parameters_of(const models::DvaeConfig& config) {
  const models::Dvae model(config);
  expect_on_meta(model);
  EXPECT_EQ(models::summarize(model).num_parameters, model.num_parameters());
  return model.num_parameters();
}

int64_t parameters_of(const models::ClipConfig& config) {
  const models::Clip model(config);
  expect_on_meta(model);
  return model.num_parameters();
}

int64_t parameters_of(const models::PriorConfig& config) {
  const models::Prior model(config);
  expect_on_meta(model);
  return model.num_parameters();
}

/// The configs of a folder. Sizes left to other runs come from the configs of those runs.
struct Folder {
  explicit Folder(const fs::path& path) {
    tokenizer = round_trip<TokenizerTraining>(path / "tokenizer.yaml");
    dvae = round_trip<DvaeTraining>(path / "dvae.yaml");
    clip = round_trip<ClipTraining>(path / "clip.yaml");
    prior = round_trip<PriorTraining>(path / "prior.yaml");
    encode = round_trip<EncodeConfig>(path / "encode.yaml");
    if (clip.model.text_vocab_size == 0) clip.model.text_vocab_size = tokenizer.tokenizer.vocab_size + 2;
    if (prior.model.text_vocab_size == 0) prior.model.text_vocab_size = tokenizer.tokenizer.vocab_size;
    if (prior.model.grid_size == 0) prior.model.grid_size = dvae.model.grid_size();
    if (prior.model.image_vocab_size == 0) prior.model.image_vocab_size = dvae.model.vocab_size;
  }
  TokenizerTraining tokenizer;
  DvaeTraining dvae;
  ClipTraining clip;
  PriorTraining prior;
  EncodeConfig encode;
};

/// The tokens are those that train-prior would make on line from the same folder's config.
void expect_tokens_of_the_prior(const Folder& folder) {
  const auto& stored = folder.encode.data.pictures;
  const auto& on_line = folder.prior.data;
  EXPECT_EQ(folder.encode.dvae, folder.prior.dvae);
  EXPECT_EQ(config::emit_yaml(config::dump(stored.sources[0])), config::emit_yaml(config::dump(on_line.sources[0])));
  EXPECT_EQ(stored.augmentation, on_line.augmentation);
  EXPECT_EQ(stored.horizontal_flip, on_line.horizontal_flip);
  EXPECT_EQ(stored.resize_filter, on_line.resize_filter);
  EXPECT_EQ(stored.background, on_line.background);
}

TEST(Config, ThePapersModelsHaveThePapersSizes) {
  const Folder paper(kConfigs / "paper");
  EXPECT_EQ(parameters_of(paper.dvae.model), 97'616'006);
  EXPECT_EQ(parameters_of(paper.prior.model), 12'292'840'960);
  EXPECT_GT(parameters_of(paper.clip.model), 100'000'000);
  EXPECT_EQ(paper.prior.model.grid_size, paper.dvae.model.grid_size());
  EXPECT_EQ(paper.prior.model.image_vocab_size, paper.dvae.model.vocab_size);
  EXPECT_EQ(paper.prior.model.text_vocab_size, paper.tokenizer.tokenizer.vocab_size);
  EXPECT_EQ(paper.clip.model.text_vocab_size, paper.tokenizer.tokenizer.vocab_size + 2);
  expect_tokens_of_the_prior(paper);
}

TEST(Config, TheDemosModelsFitTogetherAndItsDataIsThere) {
  const Folder demo(kConfigs / "demo");
  for (const int64_t parameters :
       {parameters_of(demo.dvae.model), parameters_of(demo.clip.model), parameters_of(demo.prior.model)}) {
    EXPECT_GT(parameters, 100'000);
    EXPECT_LT(parameters, 20'000'000);
  }
  EXPECT_EQ(demo.clip.model.image_size, demo.dvae.model.image_size);
  EXPECT_EQ(demo.clip.dvae, demo.prior.dvae);
  EXPECT_EQ(demo.clip.tokenizer, demo.prior.tokenizer);
  expect_tokens_of_the_prior(demo);
  for (const auto& sources :
       {demo.tokenizer.data.sources, demo.dvae.data.sources, demo.clip.data.sources, demo.prior.data.sources,
        demo.dvae.validation.sources, demo.clip.validation.sources, demo.prior.validation.sources}) {
    ASSERT_FALSE(sources.empty());
    for (const auto& source : sources) EXPECT_TRUE(fs::exists(source.path)) << source.path;
  }
}

struct LadderStep {
  const char* name;
  int64_t parameters;
};
const LadderStep kLadder[] = {{"10m", 9'776'384},      {"30m", 29'231'104},     {"100m", 100'782'336},
                              {"350m", 353'259'520},   {"1.2b", 1'197'118'208}, {"2.8b", 2'928'262'656},
                              {"5.6b", 5'685'004'800}, {"12b", 12'292'840'960}};

TEST(Config, TheLadderOfPriorsIsAsLargeAsItsNamesSay) {
  for (const auto& [name, parameters] : kLadder) {
    const auto config = round_trip<PriorTraining>(kConfigs / "prior" / (std::string(name) + ".yaml"));
    EXPECT_EQ(parameters_of(config.model), parameters) << name;
    EXPECT_EQ(config.model.dim / config.model.num_heads, 64) << "heads of 64 throughout, as the paper's";
    EXPECT_EQ(config.model.layer_order, models::LayerOrder::kPaper);
    EXPECT_EQ(config.trainer.batch_size % config.trainer.micro_size(), 0);
    EXPECT_EQ(config.data.tokens.size(), 1U) << "runs of encode-images";
    EXPECT_FALSE(config.dvae.empty()) << "for previews";
  }
}

// Table 1: 64 layers, widths 1920, 2688 and 3968, counted without embeddings.
TEST(Config, TheTopOfTheLadderIsThePapers) {
  const auto load = [](const std::string& file) { return config::load_config_file<PriorTraining>(kConfigs / file); };
  EXPECT_EQ(config::emit_yaml(config::dump(load("prior/12b.yaml").model)),
            config::emit_yaml(config::dump(load("paper/prior.yaml").model)));
  for (const auto& [file, billions] : {std::pair{"prior/2.8b.yaml", 2.8}, std::pair{"prior/5.6b.yaml", 5.6}}) {
    const auto model = load(file).model;
    EXPECT_EQ(model.num_layers, 64);
    EXPECT_NEAR(64 * 12 * static_cast<double>(model.dim * model.dim) / 1e9, billions, 0.06) << file;
  }
  for (const char* file : {"prior/2.8b.yaml", "prior/5.6b.yaml", "prior/12b.yaml"}) {
    const auto big = load(file), paper = load("paper/prior.yaml");
    EXPECT_EQ(config::emit_yaml(config::dump(big.optimizer)), config::emit_yaml(config::dump(paper.optimizer)));
    EXPECT_EQ(big.learning_rate.start, paper.learning_rate.start);
    EXPECT_EQ(big.learning_rate.warmup_steps, paper.learning_rate.warmup_steps);
    EXPECT_EQ(big.learning_rate.plateau.max_halvings, 5);
    EXPECT_EQ(big.trainer.batch_size, paper.trainer.batch_size);
    EXPECT_EQ(big.trainer.num_steps, paper.trainer.num_steps);
  }
}

TEST(Config, ModelsThatPlansAreComparedWithHaveTheirSizes) {
  EXPECT_EQ(parameters_of(round_trip<PriorTraining>(kConfigs / "plan/gpt2_1558m.yaml").model), 1'556'403'905);
  EXPECT_EQ(parameters_of(round_trip<PriorTraining>(kConfigs / "plan/mpt_1b.yaml").model), 1'312'197'825);
  for (const char* name : {"a100", "cpu", "h100", "v100"}) {
    EXPECT_FALSE(round_trip<DeviceDescription>(kConfigs / "devices" / str(name, ".yaml")).sources.empty()) << name;
  }
}

// A config in a new folder or of a new kind is built by a test, or this one says so.
TEST(Config, EveryShippedConfigIsTested) {
  const std::set<std::string> kinds{"tokenizer.yaml", "dvae.yaml", "clip.yaml", "prior.yaml", "encode.yaml"};
  const std::set<std::string> folders{"demo", "paper", "ablations"};
  const std::set<std::string> others{"gpt2_1558m", "mpt_1b", "a100", "cpu", "h100", "v100"};  // the test above
  int64_t found = 0;
  for (const auto& entry : fs::recursive_directory_iterator(kConfigs)) {
    if (entry.path().extension() != ".yaml") continue;
    ++found;
    if (const auto folder = entry.path().parent_path().filename(); folder == "plan" || folder == "devices") {
      EXPECT_TRUE(others.contains(entry.path().stem().string())) << entry.path();
      continue;
    }
    if (entry.path().parent_path().filename() == "prior") {
      const auto is_it = [&](const LadderStep& step) { return entry.path().stem() == step.name; };
      EXPECT_TRUE(std::any_of(std::begin(kLadder), std::end(kLadder), is_it)) << entry.path();
      continue;
    }
    EXPECT_TRUE(kinds.contains(entry.path().filename().string()) &&
                folders.contains(entry.path().parent_path().filename().string()))
        << entry.path();
  }
  EXPECT_EQ(found, 25);
}

TEST(Config, EveryKeyIsDescribed) {
  const auto expect_help = [](const std::vector<config::FieldDescription>& rows, size_t at_least) {
    EXPECT_GT(rows.size(), at_least);
    std::set<std::string> paths;
    for (const auto& row : rows) {
      EXPECT_TRUE(paths.insert(row.path).second) << row.path << " twice";
      EXPECT_FALSE(row.type.empty()) << row.path;
      EXPECT_GE(row.help.size(), 4U) << row.path;
    }
  };
  expect_help(config::describe<DvaeTraining>(), 50);
  expect_help(config::describe<ClipTraining>(), 50);
  expect_help(config::describe<PriorTraining>(), 50);
  expect_help(config::describe<TokenizerTraining>(), 5);
  expect_help(config::describe<EncodeConfig>(), 15);
}

// What docs promise about --resume: intervals, lengths, schedules, threads and where files lie may change, the model and how
// the data are read may not. That a moved dVAE, tokenizer or data set is the same one is found when it is opened.
TEST(Config, OnlyWhatKeepsTheRunTheSameMayChange) {
  const auto rows = config::describe<PriorTraining>();
  for (const char* path : {"trainer.num_steps", "trainer.checkpoint_interval_steps", "learning_rate.start",
                           "learning_rate.halve_at[0]", "data.loader_threads", "precision", "data.sources[0].path",
                           "dvae", "tokenizer", "validation.sources[0].path", "data.tokens[0]"}) {
    EXPECT_TRUE(config::is_changeable(rows, path)) << path;
  }
  for (const char* path : {"trainer.seed", "trainer.batch_size", "trainer.freeze[0]", "model.dim",
                           "data.sources[0].max_samples", "text_loss_weight", "data.num_streams"}) {
    EXPECT_FALSE(config::is_changeable(rows, path)) << path;
  }
}

TEST(Config, CropsAreThoseOfThePapersStage) {
  const auto augmentation_of = [](auto data, const std::string& more) {
    const auto tree = config::parse_yaml("{sources: [{path: a.tar}]" + more + "}", "my.yaml");
    return config::load_config<decltype(data)>(tree).augmentation;
  };
  EXPECT_EQ(augmentation_of(data::DataConfig{}, ""), data::Augmentation::kStage1);
  EXPECT_EQ(augmentation_of(PriorData{}, ""), data::Augmentation::kStage2);
  EXPECT_EQ(augmentation_of(PriorData{}, ", augmentation: none"), data::Augmentation::kNone);
}

TEST(Config, KeysAreCheckedWhereTheyAreWritten) {
  const auto load = [](const std::string& yaml) {
    try {
      config::load_config<DvaeTraining>(config::parse_yaml(yaml, "my.yaml"));
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(load("trainer:\n  num_step: 3\n"), HasSubstr("my.yaml:2: unknown key 'trainer.num_step'"));
  EXPECT_THAT(load("trainer:\n  num_step: 3\n"), HasSubstr("did you mean 'num_steps'?"));
  EXPECT_THAT(load("trainer:\n  batch_size: 0\n"),
              HasSubstr("my.yaml:2 (trainer.batch_size): expected a number >= 1, got '0'"));
  EXPECT_THAT(load("relaxation:\n  kl_normalization: papr\n"), HasSubstr("one of: per_position, paper"));
  EXPECT_THAT(load("trainer:\n  batch_size: 6\n  micro_batch_size: 4\n"), HasSubstr("divisible by micro_batch_size 4"));
}

}  // namespace
}  // namespace dalle::training

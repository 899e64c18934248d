// Configs of a whole tiny system as files, and its runs: tokenizer, dVAE, CLIP and prior on 16x16 emoji.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "dalle/storage/run_checkpoints.h"
#include "integration/process.h"
#include "support/picture_files.h"
#include "support/tar_files.h"
#include "support/temp_directory.h"

namespace dalle::integration {

inline std::string emoji(const std::string& file) { return str(DALLE_SOURCE_DIR, "/data/emoji/", file); }

/// The parts that all three trainers share. Every step is logged.
inline std::string trainer_yaml(int64_t num_steps, const std::string& source, const std::string& extra = "") {
  return str(
      "trainer:\n  num_steps: ", num_steps,
      "\n  batch_size: 4\n  seed: 1\n  ema_decay: 0.9\n  log_interval_steps: 1\n  checkpoint_interval_steps: 0\n",
      extra, "precision: f32\ndata:\n  sources:\n    - path: ", source,
      "\n      max_samples: 48\n  augmentation: none\nlearning_rate:\n  start: 4e-3\n");
}

inline std::string dvae_yaml(int64_t num_steps, const std::string& source = emoji("train.tar"),
                             const std::string& extra = "") {
  return trainer_yaml(num_steps, source, extra) +
         "model:\n  image_size: 16\n  vocab_size: 16\n  hidden_dim: 8\n  num_groups: 3\n  num_blocks_per_group: 1\n"
         "  decoder_init_dim: 8\n"
         "relaxation:\n  kl_weight_end: 0\n  temperature_end: 0.5\n  temperature_steps: 20\n";
}

inline std::string tokenizer_yaml(int64_t vocab_size = 340, const std::string& source = emoji("train.tar")) {
  return str("data:\n  sources:\n    - path: ", source,
             "\n      max_samples: 48\ntokenizer:\n  vocab_size: ", vocab_size, "\n");
}

inline std::string clip_yaml(int64_t num_steps, const std::string& extra = "") {
  return trainer_yaml(num_steps, emoji("train.tar"), extra) +
         "model:\n  image_size: 16\n  patch_size: 4\n  vision_dim: 16\n  vision_layers: 1\n  vision_heads: 2\n  "
         "text_context: 16\n"
         "  text_vocab_size: 0\n  text_dim: 16\n  text_layers: 1\n  text_heads: 2\n  embed_dim: 16\n"
         "tokenizer: tokenizer\ndvae: dvae\nreconstructed_share: 0.5\n";
}

inline std::string prior_yaml(int64_t num_steps, const std::string& extra = "") {
  return trainer_yaml(num_steps, emoji("train.tar"), extra) +
         "model:\n  text_context: 16\n  text_vocab_size: 0\n  grid_size: 0\n  image_vocab_size: 0\n  dim: 16\n  "
         "num_heads: 2\n"
         "  num_layers: 4\n  conv_kernel: 3\n  init_scale: 1\n"
         "tokenizer: tokenizer\ndvae: dvae\nbpe_dropout: 0\npreview_captions: 1\n";
}

/// A workplace: configs lie beside the runs that they name.
class Workplace : public testing::TempDirectory {
 public:
  using TempDirectory::TempDirectory;

  std::string file(const std::string& name, const std::string& content) const {
    write_file(*this / name, content);
    return (*this / name).string();
  }
  std::string at(const std::string& name) const { return (*this / name).string(); }

  /// train-KIND of CONFIG into the run directory `run`, on one thread.
  Outcome train(const std::string& kind, const std::string& yaml, const std::string& run,
                std::vector<std::string> more = {}, const Launch& launch = {}) const {
    std::vector<std::string> arguments{file(str(run, ".yaml"), yaml), "--run-dir", at(run), "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return integration::run("train-" + kind, arguments, launch);
  }
  void train_well(const std::string& kind, const std::string& yaml, const std::string& run) const {
    const Outcome outcome = train(kind, yaml, run);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  }
  Outcome resume(const std::string& kind, const std::string& run, std::vector<std::string> more = {},
                 const Launch& launch = {}) const {
    std::vector<std::string> arguments{"--run-dir", at(run), "--resume", "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return integration::run("train-" + kind, arguments, launch);
  }
};

/// A system that can sample. Made once per test file that asks for it.
class TinySystem : public Workplace {
 public:
  TinySystem() : Workplace("tiny-system") {
    train_well("tokenizer", tokenizer_yaml(), "tokenizer");
    train_well("dvae", dvae_yaml(12), "dvae");
    train_well("clip", clip_yaml(6), "clip");
    train_well("prior", prior_yaml(12), "prior");
  }
  static const TinySystem& instance() {
    static const TinySystem system;
    return system;
  }
};

/// Arguments that name the system's models for sample-and-rerank, and one thread.
inline std::vector<std::string> sample_arguments(const TinySystem& system, const std::string& out,
                                                 std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"--prior",         system.at("prior"), "--dvae", system.at("dvae"), "--clip",
                                     system.at("clip"), "--threads",        "1",      "--precision",     "f32",
                                     "--out",           system.at(out)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

inline nlohmann::json json_of(const fs::path& path) { return nlohmann::json::parse(read_file(path)); }

inline std::vector<nlohmann::json> train_lines(const fs::path& run) {
  std::istringstream text(read_file(run / "metrics.jsonl"));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) {
    auto entry = nlohmann::json::parse(line);
    if (entry["phase"] == "train") lines.push_back(std::move(entry));
  }
  return lines;
}

/// Tensors of two checkpoint folders, byte for byte.
inline void expect_same_weights(const fs::path& actual, const fs::path& expected) {
  for (const char* name : {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}) {
    EXPECT_TRUE(read_file(actual / name) == read_file(expected / name)) << actual << " " << name;
  }
}

/// `count` coloured 16x16 pictures with captions, as files of a shard.
inline testing::TarFiles coloured_pictures(int64_t count) {
  testing::TarFiles files;
  for (int64_t i = 0; i < count; ++i) {
    std::string pixels;
    for (int p = 0; p < 256; ++p) pixels += {static_cast<char>(p), static_cast<char>(7 * i), static_cast<char>(p * i)};
    const std::string key = str("picture-", i + 100);
    files.emplace_back(key + ".png", testing::make_png(16, 16, 2, 8, pixels));
    files.emplace_back(key + ".txt", str("a square of colour and the number ", i, "\n"));
  }
  return files;
}

}  // namespace dalle::integration

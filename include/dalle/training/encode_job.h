// encode-images: a data set -> shards of image tokens (docs/token_shards.md). The frozen dVAE encodes several augmented
// crops of each picture; all captions are kept, so that which of them is used, and how it is cut into pieces, can still
// be drawn anew in each epoch.
#pragma once

#include <filesystem>
#include <string>

#include "dalle/cli/command.h"
#include "dalle/config/fields.h"
#include "dalle/core/precision.h"
#include "dalle/data/data_config.h"

namespace dalle::training {

/// The keys of a data section that say how a sample becomes a picture. Those that choose among captions or order samples
/// are left to the reader of the tokens.
struct EncodeData {
  data::DataConfig pictures{.augmentation = data::Augmentation::kStage2};

  static void visit_fields(auto& self, auto&& field) {
    data::DataConfig::visit_fields(
        self.pictures, [&](const char* name, auto& member, const char* help, config::FieldOptions options = {}) {
          const std::string key = name;
          if (key != "caption" && key != "num_streams") field(name, member, help, options);
        });
  }
  void validate(const std::string& place) const { pictures.validate(place); }
};

struct EncodeConfig {
  std::filesystem::path dvae;
  EncodeData data;
  int64_t crops_per_image = 2;
  int64_t seed = 0;
  Precision precision = Precision::kAuto;
  int64_t batch_size = 64;
  int64_t samples_per_shard = 8192;

  static void visit_fields(auto& self, auto&& field) {
    field("dvae", self.dvae,
          "the frozen dVAE: checkpoint, run directory or .safetensors; its averaged weights are used");
    field("data", self.data, "the pictures and captions to encode");
    field(
        "crops_per_image", self.crops_per_image,
        "augmented crops encoded of each picture; training uses another one in each epoch, so as many crops as epochs "
        "equal augmenting on line (the paper trains for 1.76 epochs)",
        {.min = 1, .max = 4096});
    field("seed", self.seed, "seed of the crops", {.min = 0});
    field("precision", self.precision, "number format of matrix work", {.changeable = true});
    field("batch_size", self.batch_size, "crops encoded together", {.min = 1, .changeable = true});
    field("samples_per_shard", self.samples_per_shard,
          "pictures in a file; an interrupted run goes on at the first file it lacks", {.min = 1, .unit = "samples"});
  }
  void validate(const std::string& place) const;
};

/// Writes RUN/shards/tokens-XXXXXX.shard and, last, RUN/shards/MANIFEST.json. With call.resume, whole shards of the run
/// are kept after their checksums have been compared.
int run_encode(const EncodeConfig& config, const cli::Invocation& call);

/// Prints what a picture costs: the dVAE, tokens, bytes and memory. Encodes nothing.
void check_encode(const EncodeConfig& config, const cli::Invocation& call);

}  // namespace dalle::training

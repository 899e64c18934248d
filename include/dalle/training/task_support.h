// Small pieces that the tasks share.
#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "dalle/core/hash.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/data/loader.h"
#include "dalle/layers/module.h"
#include "dalle/text/text_tokenizer.h"
#include "dalle/training/config.h"
#include "dalle/training/task.h"

namespace dalle::training {

/// Parameters whose names begin with one of `prefixes` (trainer.freeze) keep their values. Throws ConfigError where a prefix
/// begins no name, or nothing is left to train.
void freeze(layers::Module& module, const std::vector<std::string>& prefixes);

/// The held-out data, or null where the config names none.
std::unique_ptr<data::Dataset> open_validation(const ValidationConfig& config);
/// Samples of it that are used.
int64_t validation_size(const data::Dataset& validation, const ValidationConfig& config);

/// Of a loader that gives each rank micro_batch_size samples at a time.
data::LoaderOptions loader_options(const TrainerConfig& trainer, int64_t image_size, int64_t micro_batch_size,
                                   int64_t start_position, const distributed::Communicator& ranks);

/// Samples first .. first + size - 1.
struct SampleRange {
  int64_t first = 0;
  int64_t size = 0;
};
/// `count` samples in batches, of which every world_size-th is this rank's: as many on every rank, the last may be empty.
std::vector<SampleRange> own_batches(int64_t count, int64_t batch_size, const distributed::Communicator& ranks);

/// Replaces every number by its sum over ranks.
void sum_over_ranks(std::initializer_list<double*> numbers, distributed::Communicator& ranks);

/// "N samples, captions HASH": the hash is over the captions of up to 1,024 samples, evenly spread.
template <class Samples>
std::string plan_of(const Samples& samples) {
  constexpr int64_t kLooks = 1024;
  const int64_t size = samples.size(), looks = std::min(size, kLooks);
  Hasher hasher;
  for (int64_t i = 0; i < looks; ++i) {
    for (const std::string& caption : samples.captions(i * size / looks)) hasher.update(caption + '\n');
  }
  return str(size, " samples, captions ", hasher.hex());
}

/// The numbers that BPE dropout uses for a sample in an epoch: a function of these three alone.
RandomKey bpe_dropout_key(const TrainerConfig& trainer, const data::SampleVisit& visit);

/// u8 pictures -> f32 in [0, 1] on `device`.
Tensor to_unit_range(const Tensor& u8, at::Device device);

/// The pictures of a batch with their captions, or what `label` says, underneath.
Sheet captioned_sheet(const std::string& name, const PreparedBatch& batch, const std::string& title,
                      const std::function<std::string(size_t)>& label = {});

/// The pieces of a row of ids as text, see text::shown_pieces.
std::string shown_pieces(const text::TextTokenizer& tokenizer, const Tensor& ids);

/// Three significant digits.
std::string short_number(double value);

/// A tokenizer.model file from what a config says: the file, or a run directory of train-tokenizer. Throws ConfigError.
std::filesystem::path tokenizer_file(const std::filesystem::path& given);

/// Notes in the log, for --check: what a config names and is not there yet.
void note_missing(const std::string& key, const std::filesystem::path& path);
void note_missing_sources(const data::DataConfig& config);

}  // namespace dalle::training

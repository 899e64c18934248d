// A checkpoint: everything a run needs to go on, or a sampler needs to sample, in one folder (docs/checkpoint_format.md).
// A folder is written beside its place and renamed whole, so a crash or a full disk leaves earlier checkpoints untouched
// and never a half one under a real name. Randomness is counter-based: the seed in the config and the step are its state.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dalle/storage/manifest.h"
#include "dalle/storage/named_tensor.h"
#include "dalle/storage/tensor_pieces.h"

namespace dalle::storage {

inline constexpr int64_t kCheckpointFormatVersion = 1;

struct Checkpoint {
  std::string kind;                               // "dvae", "prior" or "clip"
  std::string config_yaml;                        // the whole run config as resolved
  std::string model_config_yaml;                  // the model's own section: its architecture
  int64_t step = 0;                               // optimizer updates done
  int64_t samples_seen = 0;                       // data position: samples of the global order used up
  std::vector<NamedTensor> model;                 // f32 master weights
  std::vector<NamedTensor> ema;                   // empty where there is no EMA
  std::vector<NamedTensor> optimizer;             // empty where it was not saved or not asked for
  std::string tokenizer;                          // bytes of tokenizer.model; empty where the model reads no text
  std::map<std::string, std::string> identities;  // "model", "ema", "dvae", "tokenizer", ...
  std::map<std::string, double> scalars;          // schedule and trainer numbers; NaN and infinities are kept

  /// The EMA weights where they were saved and loaded, else the model's: what samplers use.
  const std::vector<NamedTensor>& evaluation_weights() const { return ema.empty() ? model : ema; }
};

/// Which tensors to read. The texts, numbers and the tokenizer always are.
enum class LoadParts {
  kAll,         // model, EMA, optimizer
  kModel,       // model.safetensors alone
  kEvaluation,  // ema.safetensors alone; the model's weights where there is no EMA
  kWeights,     // model and EMA, no optimizer
  kTexts,       // none
};

/// Writes FOLDER.tmp-PID, flushes every file, the manifest last, and renames it to FOLDER, replacing a checkpoint of that
/// name in one step. Throws FileError, with how much space is missing where the disk cannot hold it; nothing is left then.
void save_checkpoint(const std::filesystem::path& folder, const Checkpoint& checkpoint);

// The same from several ranks, none of which has all tensors: one begins, each writes its part, and when all have, the
// first finishes. Until then nothing is at the checkpoint's place.

/// What one of `num_parts` ranks writes.
struct CheckpointPart {
  int64_t number = 0;
  int64_t num_parts = 1;
  std::vector<TensorPiece> model, optimizer;
  std::optional<std::vector<TensorPiece>> ema;  // on all ranks or none
};

/// Makes the empty folder that parts of the checkpoint `folder` are written into, and returns it. Throws FileError.
std::filesystem::path begin_checkpoint(const std::filesystem::path& folder);
/// Writes a part's files and flushes them. Throws FileError, with how much space is missing where the disk cannot hold it.
std::vector<ManifestEntry> write_part(const std::filesystem::path& begun, const CheckpointPart& part);
/// Adds the texts of `checkpoint` and the manifest of `files` and renames `begun` to `folder`.
void finish_checkpoint(const std::filesystem::path& begun, const std::filesystem::path& folder,
                       const Checkpoint& checkpoint, const std::vector<ManifestEntry>& files);

/// The tensors "model", "ema" or "optimizer" of a folder, to be read in parts. Throws CheckpointError.
TensorFiles checkpoint_tensors(const std::filesystem::path& folder, const std::string& kind);

/// Reads a checkpoint folder, or a bare .safetensors file (its tensors are `model`). Sizes of all files and checksums of
/// those that are read are verified: CheckpointError names the file, what was expected and what is there.
Checkpoint load_checkpoint(const std::filesystem::path& folder_or_file, LoadParts parts = LoadParts::kAll);

/// Verifies every file of a checkpoint folder, or the header of a bare file. Throws CheckpointError.
void verify_checkpoint(const std::filesystem::path& folder_or_file);

/// One .safetensors file with checkpoint.evaluation_weights() and kind, configs, step, identities and tokenizer in its
/// metadata.
void write_bare_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);

}  // namespace dalle::storage

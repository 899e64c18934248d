// OpenAI's released dVAE (openai/DALL-E: encoder.pkl and decoder.pkl) as a checkpoint of ours. Their names below
// "encoder." and "decoder." are ours; all sizes are read off the tensors.
#pragma once

#include <cstdint>
#include <filesystem>

#include "dalle/storage/checkpoint.h"

namespace dalle::interop {

struct OpenaiDvaeFiles {
  /// Whole pickled modules or state dicts of torch.save, or .safetensors, with names as
  /// "blocks.group_1.block_1.res_path.conv_1.w". One file with both halves under "encoder." and "decoder.", as
  /// export-weights writes it, may be given twice.
  std::filesystem::path encoder, decoder;
  /// The weights fit any picture size; this one is written down as the model's own.
  int64_t image_size = 256;
};

/// Weights as f32 masters, step 0, no run config. Throws CheckpointError naming every tensor that is missing, left over,
/// of another shape or not finite, and what storage::read_torch_file and read_safetensors refuse; ConfigError for an
/// image_size that the model can not have.
storage::Checkpoint import_openai_dvae(const OpenaiDvaeFiles& files);

}  // namespace dalle::interop

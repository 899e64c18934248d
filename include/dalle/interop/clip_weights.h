// Published CLIPs as checkpoints of ours: OpenAI's (openai/CLIP: TorchScript archives such as ViT-B-32.pt) and open_clip's
// (mlfoundations/open_clip). Both use the names that ours have.
#pragma once

#include <filesystem>

#include "dalle/storage/checkpoint.h"

namespace dalle::interop {

struct ClipFiles {
  /// A TorchScript archive, of which only the tensors are read; a file of torch.save with a state dict, also below "state_dict"
  /// and "module." as open_clip's training saves it; or .safetensors.
  std::filesystem::path weights;
  /// bpe_simple_vocab_16e6.txt.gz, which the checkpoint will carry (text/clip_bpe.h).
  std::filesystem::path tokenizer;
  /// The MLPs' activation, which is not in the file: x sigmoid(1.702 x), as in all of OpenAI's models, or GELU.
  bool quick_gelu = true;
};

/// A vision transformer of any size with heads of 64, normalised by OpenAI's mean and deviation. Weights as f32 masters, step 0,
/// no run config. Throws CheckpointError for models of another kind (ResNets, SigLIP, timm towers, Hugging Face's names),
/// naming every tensor that is missing, left over, of another shape or not finite, and for what the readers refuse.
storage::Checkpoint import_clip(const ClipFiles& files);

}  // namespace dalle::interop

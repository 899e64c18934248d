// state.json: everything of a checkpoint that is neither tensor nor tokenizer.
#pragma once

#include <string>

#include "dalle/storage/checkpoint.h"

namespace dalle::storage {

std::string state_text(const Checkpoint& checkpoint, const std::string& place);

/// Fills the texts and numbers of a checkpoint. Throws CheckpointError, with `place` in it.
Checkpoint parse_state(const std::string& text, const std::string& place);

}  // namespace dalle::storage

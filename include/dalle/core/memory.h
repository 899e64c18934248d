// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <filesystem>

namespace dalle {

/// Bytes of main memory: MemAvailable of the machine, or what the process's control group (version 2 or 1) and those above it
/// leave, whichever is less. `root` is where /proc and /sys lie (for tests). 0 where nothing is known.
int64_t available_memory_bytes(const std::filesystem::path& root = "/");

}  // namespace dalle

// CRC-32 as zip archives use it (polynomial 0xEDB88320).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dalle::storage {

/// The checksum of what came before (0 at the start) and `bytes`.
uint32_t crc32(uint32_t before, std::span<const std::byte> bytes);

}  // namespace dalle::storage

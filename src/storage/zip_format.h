// The records of a zip archive (PKWARE's APPNOTE 4.3), shared by its reader and its writer. All numbers are little-endian.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace dalle::storage::zip {

static_assert(std::endian::native == std::endian::little, "zip records are little-endian");

constexpr uint32_t kLocalSignature = 0x04034b50, kEntrySignature = 0x02014b50, kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50, kLocatorSignature = 0x07064b50;
// Fixed parts, in bytes; names, extra fields and comments follow.
constexpr size_t kLocalSize = 30, kEntrySize = 46, kEndSize = 22, kEnd64Size = 56, kLocatorSize = 20;
constexpr uint16_t kZip64Extra = 0x0001;
constexpr uint32_t kIn64 = 0xFFFFFFFF;  // a 32-bit field with this value is found in the zip64 records

/// The number at `offset`, which the caller has checked.
template <class T>
T number(std::string_view record, size_t offset) {
  T value;
  std::memcpy(&value, record.data() + offset, sizeof value);
  return value;
}

}  // namespace dalle::storage::zip

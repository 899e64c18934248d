// Text from an untrusted file, made fit for a message.
#pragma once

#include <string>
#include <string_view>

namespace dalle::storage {

/// 'text' in quotes, cut after 100 bytes, with control characters (which a terminal might obey) as "?".
inline std::string printable(std::string_view text) {
  constexpr size_t kMaxBytes = 100;
  std::string shown = "'" + std::string(text.substr(0, kMaxBytes)) + (text.size() > kMaxBytes ? "...'" : "'");
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return shown;
}

}  // namespace dalle::storage

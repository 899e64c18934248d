// Base64 (RFC 4648, with padding): carries a tokenizer's bytes in the text metadata of a safetensors file.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace dalle::storage {

std::string encode_base64(std::string_view bytes);

/// Empty where `text` is not base64: wrong length, other characters, padding in the middle.
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace dalle::storage

// The captions of data/emoji, read by a minimal tar walk, for tests of layers that have no data sources.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/core/files.h"

namespace dalle::testing {

/// Non-empty lines of the .txt entries of data/emoji/`file` ("train.tar" or "val.tar"), in order.
inline std::vector<std::string> emoji_captions(const std::string& file) {
  const std::string tar = read_file(std::filesystem::path(DALLE_SOURCE_DIR) / "data" / "emoji" / file);
  std::vector<std::string> captions;
  for (size_t header = 0; header + 512 <= tar.size() && tar[header] != '\0';) {
    const std::string name = tar.c_str() + header;
    const size_t size = std::stoul(tar.substr(header + 124, 11), nullptr, 8);
    if (name.ends_with(".txt")) {
      const std::string text = tar.substr(header + 512, size);
      for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        if (end > begin) captions.push_back(text.substr(begin, end - begin));
        begin = end + 1;
      }
    }
    header += 512 + (size + 511) / 512 * 512;
  }
  return captions;
}

}  // namespace dalle::testing

// Tar files made by hand, so that what our reader accepts does not depend on the library it reads with.
#pragma once

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "dalle/core/str.h"

namespace dalle::testing {

using TarFiles = std::vector<std::pair<std::string, std::string>>;  // name, content

inline std::string tar_header(const std::string& name, size_t size, char type = '0') {
  std::string header(512, '\0');
  header.replace(0, name.size(), name);
  header.replace(100, 7, "0000644");
  char digits[13];
  std::snprintf(digits, sizeof digits, "%011zo", size);
  header.replace(124, 11, digits);
  header.replace(136, 11, "00000000000");
  header[156] = type;
  header.replace(257, 8, std::string("ustar\00000", 8));
  header.replace(148, 8, "        ");
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  std::snprintf(digits, sizeof digits, "%06o", sum);
  header.replace(148, 7, std::string(digits) + '\0');
  return header;
}

inline std::string padded(std::string content) {
  content.resize((content.size() + 511) / 512 * 512, '\0');
  return content;
}

/// Entries in order; names longer than 100 bytes get a pax header. `end_marker`: the two blocks of zeros.
inline std::string make_tar(const TarFiles& files, bool end_marker = true) {
  std::string tar;
  for (const auto& [name, content] : files) {
    if (name.size() > 100) {
      std::string record = str(" path=", name, "\n");
      size_t length = record.size();
      while (std::to_string(length).size() + record.size() != length) ++length;
      record = std::to_string(length) + record;
      tar += tar_header("pax", record.size(), 'x') + padded(record);
    }
    tar += tar_header(name.substr(0, 100), content.size()) + padded(content);
  }
  return end_marker ? tar + std::string(1024, '\0') : tar;
}

}  // namespace dalle::testing

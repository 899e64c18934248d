// The captions that a command is given, on its command line and in a file.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace dalle::generation {

/// `given` and then the lines of `file` (may be empty), without blank lines (text::is_blank) and carriage returns. Throws
/// ConfigError where there is none at all, where a given one is blank, and, with the line, for text that is not UTF-8, has a NUL
/// byte or more than 4,096 characters.
std::vector<std::string> read_captions(const std::vector<std::string>& given, const std::filesystem::path& file);

/// At most 80 bytes of a caption for a message, cut between characters, "..." where something is left out.
std::string shortened(const std::string& text);

}  // namespace dalle::generation

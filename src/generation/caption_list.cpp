#include "dalle/generation/caption_list.h"

#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"

namespace dalle::generation {
namespace {

// Models read some hundred tokens and leave out the rest with a warning. What is much longer is no caption but a mistake, such as
// a whole file.
constexpr size_t kMostCharacters = 4096;

void check(const std::string& caption, const std::string& place) {
  if (const auto nul = caption.find('\0'); nul != std::string::npos) {
    throw ConfigError(Problem{.place = place,
                              .expected = "UTF-8 text",
                              .got = str("a NUL byte at byte ", nul + 1),
                              .hint = "text in UTF-16 has such bytes: save the file as UTF-8"});
  }
  if (const auto broken = text::find_invalid_utf8(caption)) {
    throw ConfigError(Problem{.place = place,
                              .expected = "UTF-8 text",
                              .got = str("bytes that are not UTF-8 at byte ", *broken + 1),
                              .hint = "convert it, for example with iconv -f latin1 -t utf-8"});
  }
  if (const size_t characters = text::num_code_points(caption); characters > kMostCharacters) {
    throw ConfigError(Problem{.place = place,
                              .expected = str("a caption of at most ", kMostCharacters, " characters"),
                              .got = str(characters),
                              .hint = "models read its first tokens alone, a few hundred at most: shorten it"});
  }
}

}  // namespace

std::string shortened(const std::string& text) {
  constexpr size_t kMost = 80;  // bytes
  if (text.size() <= kMost) return text;
  size_t end = kMost - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not inside a character
  return text.substr(0, end) + "...";
}

std::vector<std::string> read_captions(const std::vector<std::string>& given, const std::filesystem::path& file) {
  for (const std::string& caption : given) {
    check(caption, "--caption");
    if (text::is_blank(caption))
      throw ConfigError(Problem{.place = "--caption", .expected = "a text", .got = "an empty one"});
  }
  std::vector<std::string> captions = given;
  if (file.empty()) return captions;
  std::istringstream lines(read_file(file));
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // a byte order mark
    if (!line.empty() && line.back() == '\r') line.pop_back();
    check(line, str(file.string(), ":", number));
    if (!text::is_blank(line)) captions.push_back(line);
  }
  if (captions.size() == given.size()) {
    throw ConfigError(
        Problem{.place = file.string(), .expected = "one caption a line", .got = "a file without any caption"});
  }
  return captions;
}

}  // namespace dalle::generation

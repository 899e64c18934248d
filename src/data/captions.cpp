#include "dalle/data/captions.h"

#include <nlohmann/json.hpp>

#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"

namespace dalle::data {
namespace {

using nlohmann::json;

void add_caption(std::string_view caption, std::vector<std::string>& captions) {
  constexpr std::string_view kBlank = " \t\r\n\v\f";
  const size_t begin = caption.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return;
  captions.emplace_back(caption.substr(begin, caption.find_last_not_of(kBlank) - begin + 1));
}

std::string utf8_problem(std::string_view text) {
  const auto offset = text::find_invalid_utf8(text);
  return offset ? str("not UTF-8 at byte ", *offset) : "";
}

std::string_view without_mark(std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  return text.starts_with(kByteOrderMark) ? text.substr(kByteOrderMark.size()) : text;
}

}  // namespace

ParsedCaptions parse_caption_lines(std::string_view text) {
  ParsedCaptions parsed{.problem = utf8_problem(text)};
  if (!parsed.problem.empty()) return parsed;
  text = without_mark(text);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    add_caption(text.substr(begin, end - begin), parsed.captions);
    begin = end + 1;
  }
  return parsed;
}

ParsedCaptions parse_caption_json(std::string_view text) {
  ParsedCaptions parsed{.problem = utf8_problem(text)};
  if (!parsed.problem.empty()) return parsed;
  const json root = json::parse(without_mark(text), nullptr, false);
  if (!root.is_object()) return {.problem = "not a JSON object"};
  if (const auto one = root.find("caption"); one != root.end() && !root.contains("captions")) {
    if (one->is_string()) add_caption(one->get_ref<const std::string&>(), parsed.captions);
    if (!one->is_string() && !one->is_null()) parsed.problem = "'caption' is not a string";
  }
  if (const auto many = root.find("captions"); many != root.end()) {
    if (!many->is_array()) return {.problem = "'captions' is not a list"};
    for (const auto& item : *many) {
      if (!item.is_string()) return {.problem = "'captions' holds something that is not a string"};
      add_caption(item.get_ref<const std::string&>(), parsed.captions);
    }
  }
  return parsed;
}

const std::string& choose_caption(const std::vector<std::string>& captions, CaptionChoice choice, uint64_t seed,
                                  int64_t position) {
  if (choice == CaptionChoice::kFirst || captions.size() == 1) return captions.front();
  RandomStream stream(random_key(seed, Purpose::kCaptionChoice, static_cast<uint64_t>(position)));
  return captions[static_cast<size_t>(stream.integer(0, static_cast<int64_t>(captions.size()) - 1))];
}

}  // namespace dalle::data

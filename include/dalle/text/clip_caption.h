// Captions as CLIP's tokenizer reads them before BPE (Radford et al. 2021, openai/CLIP clip/simple_tokenizer.py; open_clip's
// tokenizer.py cleans in the same way): HTML's character references, white space, lower case, then words.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dalle::text {

/// Replaces HTML's character references ("&eacute;", "&amp", "&#233;", "&#xE9;") as Python's html.unescape does: names of
/// HTML 5, the longest that fits where the semicolon is missing; code points that are none become U+FFFD or nothing.
std::string unescape_html(std::string_view text);

/// What ftfy (which the published tokenizers call first) does to text that was decoded rightly: straight quotes, plain forms of
/// full-width letters and ligatures, no control characters, NFC. Then references replaced twice, runs of Unicode white
/// space as one space, none at the ends, lower case (Unicode's full mapping, with the final sigma). ftfy's repair of wrongly
/// decoded text ("cafÃ©") is left out. Throws
/// DataError with the byte offset where the text is not UTF-8.
std::string clean_clip_caption(std::string_view caption);

/// The words of a cleaned caption: English endings ('s, 't, 're, 've, 'm, 'll, 'd), runs of letters, single numbers, runs
/// of anything else but white space. Classes are Unicode's, by ICU.
std::vector<std::string> split_clip_words(std::string_view cleaned);

}  // namespace dalle::text

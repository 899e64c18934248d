// A gallery of candidates as one index.html that opens from disk: no server, no other file than the pictures it shows,
// nothing from the network. Works without JavaScript (pictures are links); with it, a viewer with keyboard control.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace dalle::generation {

struct CandidateView {
  std::string file;       // picture, relative to the gallery's folder
  double score = 0;       // as the reranker gave it
  int64_t rank = 0;       // 1 is best
  int64_t candidate = 0;  // number it was drawn under
  bool kept = false;      // among the best K
};

struct CaptionResult {
  std::string caption;
  std::vector<CandidateView> candidates;  // any order; shown by rank
  std::string contact_sheet;              // relative path, or "" for none
};

struct Gallery {
  std::string title;
  std::vector<std::pair<std::string, std::string>> settings;  // shown as a table, in this order
  std::vector<CaptionResult> captions;
  std::string scores_file = "scores.json";  // linked at the top; "" for none
  bool pixelated = false;                   // enlarge tiny pictures as squares instead of smoothly
};

/// The page. Every text of the user's is escaped.
std::string gallery_html(const Gallery& gallery);

/// Writes DIR/index.html atomically. Throws FileError.
void write_gallery(const std::filesystem::path& directory, const Gallery& gallery);

/// `text` safe inside HTML text and quoted attributes.
std::string escape_html(const std::string& text);

/// A relative path as a URL: everything but letters, digits and -._~/ percent-encoded.
std::string url_path(const std::string& path);

}  // namespace dalle::generation

#include "dalle/generation/gallery_html.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/generation/gallery_assets.h"

namespace dalle::generation {
namespace {

constexpr size_t kMinCaptionsForIndex = 4;

// About four digits, the same number of decimals for scores of one size.
std::string short_number(double value) {
  const double size = std::abs(value);
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", size >= 100 ? 1 : size >= 10 ? 2 : 3, value);
  return text;
}

std::string anchor(const std::string& file, const std::string& text) {
  return str("<a href=\"", url_path(file), "\">", text, "</a>");
}

std::string card_html(const std::string& caption, const CandidateView& view) {
  const std::string score = short_number(view.score);
  const std::string title =
      str("Rank ", view.rank, ", score ", score, ", candidate ", view.candidate, view.kept ? ", kept" : "");
  const std::string alt = escape_html(str("Candidate ", view.candidate, " for \"", caption, "\", rank ", view.rank));
  const std::string url = url_path(view.file);
  return str("<a class=\"card", view.kept ? " kept" : "", "\" href=\"", url, "\" title=\"", title, "\"><img src=\"",
             url, "\" alt=\"", alt, "\" loading=\"lazy\"><div class=\"info\"><b>#", view.rank,
             view.kept ? " &#9733;" : "", "</b><span>", score, "</span></div></a>\n");
}

std::string caption_html(const CaptionResult& result, size_t index) {
  std::vector<CandidateView> views = result.candidates;
  std::stable_sort(views.begin(), views.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  const auto num_kept = std::count_if(views.begin(), views.end(), [](const auto& view) { return view.kept; });
  std::string html =
      str("<section id=\"caption-", index + 1, "\">\n<div class=\"bar\"><div><h2>", escape_html(result.caption),
          "</h2><p class=\"soft\">", views.size(), " candidates, best ", num_kept, " kept (&#9733;)");
  if (!result.contact_sheet.empty()) html += " &middot; " + anchor(result.contact_sheet, "contact sheet");
  html += "</p></div>";
  if (num_kept > 0 && static_cast<size_t>(num_kept) < views.size()) {
    html += "<button class=\"toggle\" type=\"button\" aria-pressed=\"false\" hidden>Kept only</button>";
  }
  html += "</div>\n<div class=\"grid\">\n";
  for (const CandidateView& view : views) html += card_html(result.caption, view);
  return html + "</div>\n</section>\n";
}

std::string settings_html(const Gallery& gallery) {
  if (gallery.settings.empty()) return "";
  std::string html = "<details><summary>Settings</summary><table>\n";
  for (const auto& [name, value] : gallery.settings) {
    html += str("<tr><th scope=\"row\">", escape_html(name), "</th><td>", escape_html(value), "</td></tr>\n");
  }
  return html + "</table></details>\n";
}

std::string index_html(const Gallery& gallery) {
  if (gallery.captions.size() < kMinCaptionsForIndex) return "";
  std::string html = "<details><summary>Captions</summary><nav aria-label=\"Captions\"><ol>\n";
  for (size_t i = 0; i < gallery.captions.size(); ++i) {
    html += str("<li><a href=\"#caption-", i + 1, "\">", escape_html(gallery.captions[i].caption), "</a></li>\n");
  }
  return html + "</ol></nav></details>\n";
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    // clang-format off
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      case '\'': escaped += "&#39;"; break;
      default: escaped += c;
    }
    // clang-format on
  }
  return escaped;
}

std::string url_path(const std::string& path) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/";
  std::string url;
  for (const char c : path) {
    if (kPlain.find(c) != std::string_view::npos) {
      url += c;
    } else {
      char code[4];
      std::snprintf(code, sizeof code, "%%%02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
      url += code;
    }
  }
  return url;
}

std::string gallery_html(const Gallery& gallery) {
  const size_t num_captions = gallery.captions.size();
  std::string html =
      str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
          escape_html(gallery.title), "</title>\n<style>", gallery_style(), "</style>\n</head>\n<body",
          gallery.pixelated ? " class=\"pixelated\"" : "", ">\n<header>\n<h1>", escape_html(gallery.title),
          "</h1>\n<p class=\"soft\">", num_captions, num_captions == 1 ? " caption" : " captions");
  if (!gallery.scores_file.empty())
    html += " &middot; " + anchor(gallery.scores_file, escape_html(gallery.scores_file));
  html += str("</p>\n", settings_html(gallery), index_html(gallery), "</header>\n<main>\n");
  for (size_t i = 0; i < num_captions; ++i) html += caption_html(gallery.captions[i], i);
  html += "</main>\n<footer class=\"soft\">Click a picture to enlarge it; arrow keys move, Esc closes.</footer>\n";
  html += str(gallery_viewer(), "<script>", gallery_script(), "</script>\n</body>\n</html>\n");
  return html;
}

void write_gallery(const std::filesystem::path& directory, const Gallery& gallery) {
  write_file(directory / "index.html", gallery_html(gallery));
}

}  // namespace dalle::generation

#include "dalle/generation/gallery_html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::generation {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Gallery small_gallery() {
  Gallery gallery;
  gallery.title = "Samples <1>";
  gallery.settings = {{"temperature", "1"}, {"image-prompt", "a&b \"c\".png"}};
  gallery.captions = {{"a <b>bold</b> 'cat' & \"dog\"", {}, "sheet 1.png"}};
  gallery.captions[0].candidates = {
      {"c/0002.png", 1.5, 3, 2, false}, {"c/0 #1.png", 31.25, 1, 1, true}, {"c/0000.png", 20.5, 2, 0, true}};
  return gallery;
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// Tags of the page in order; void elements and script content left out. "" where the nesting is broken.
std::string nesting_error(const std::string& html) {
  const std::regex script("<(script|style)>[^]*?</\\1>"), tag("<(/?)([a-z0-9]+)[^>]*>");
  const std::string text = std::regex_replace(html, script, "");
  std::vector<std::string> open;
  for (std::sregex_iterator it(text.begin(), text.end(), tag), end; it != end; ++it) {
    const std::string name = (*it)[2];
    if (name == "meta" || name == "img") continue;
    if ((*it)[1].length() == 0) {
      open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      return "unexpected </" + name + ">";
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : "unclosed <" + open.back() + ">";
}

TEST(GalleryHtml, TextIsEscapedEverywhere) {
  EXPECT_EQ(escape_html("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  const std::string page = gallery_html(small_gallery());
  EXPECT_THAT(page, HasSubstr("<h1>Samples &lt;1&gt;</h1>"));
  EXPECT_THAT(page, HasSubstr("<h2>a &lt;b&gt;bold&lt;/b&gt; &#39;cat&#39; &amp; &quot;dog&quot;</h2>"));
  EXPECT_THAT(page, HasSubstr("<td>a&amp;b &quot;c&quot;.png</td>"));
  EXPECT_THAT(page, Not(HasSubstr("<b>bold")));
}

TEST(GalleryHtml, PathsBecomeUrls) {
  EXPECT_EQ(url_path("c/0 #1%.png"), "c/0%20%231%25.png");
  EXPECT_EQ(url_path("\u00e9?.png"), "%C3%A9%3F.png");
  const std::string page = gallery_html(small_gallery());
  EXPECT_THAT(page, HasSubstr("src=\"c/0%20%231.png\""));
  EXPECT_THAT(page, HasSubstr("href=\"sheet%201.png\""));
}

TEST(GalleryHtml, CandidatesComeBestFirstWithRankAndScore) {
  const std::string page = gallery_html(small_gallery());
  const size_t first = page.find("c/0%20%231.png"), second = page.find("c/0000.png"), third = page.find("c/0002.png");
  EXPECT_LT(first, second);
  EXPECT_LT(second, third);
  EXPECT_THAT(page, HasSubstr("<b>#1 &#9733;</b><span>31.25</span>"));
  EXPECT_THAT(page, HasSubstr("<b>#3</b><span>1.500</span>"));
  EXPECT_EQ(count(page, "class=\"card kept\""), 2);
  EXPECT_EQ(count(page, "class=\"card\""), 1);
  EXPECT_THAT(page, HasSubstr("3 candidates, best 2 kept"));
}

TEST(GalleryHtml, EveryPictureHasAnAlternativeText) {
  const std::string page = gallery_html(small_gallery());
  EXPECT_EQ(count(page, "<img "), count(page, " alt=\""));
  EXPECT_THAT(page, HasSubstr("alt=\"Candidate 1 for &quot;a &lt;b&gt;bold"));
}

TEST(GalleryHtml, ThePageNeedsNothingFromElsewhere) {
  const std::string page = gallery_html(small_gallery());
  EXPECT_THAT(page, Not(HasSubstr("http")));
  EXPECT_THAT(page, Not(HasSubstr("<link")));
  EXPECT_THAT(page, Not(HasSubstr("@import")));
  EXPECT_THAT(page, Not(HasSubstr("src=\"//")));
  EXPECT_THAT(page, Not(HasSubstr("url(")));
}

TEST(GalleryHtml, TagsAreClosed) {
  Gallery gallery = small_gallery();
  EXPECT_EQ(nesting_error(gallery_html(gallery)), "");
  gallery.captions.resize(6);
  EXPECT_EQ(nesting_error(gallery_html(gallery)), "");
  EXPECT_EQ(nesting_error(gallery_html({})), "");
}

TEST(GalleryHtml, ManyCaptionsGetAnIndex) {
  Gallery gallery = small_gallery();
  EXPECT_THAT(gallery_html(gallery), Not(HasSubstr("<nav")));
  for (int i = 0; i < 5; ++i) gallery.captions.push_back({"caption " + std::to_string(i), {}, ""});
  const std::string page = gallery_html(gallery);
  EXPECT_THAT(page, HasSubstr("<a href=\"#caption-6\">caption 4</a>"));
  EXPECT_THAT(page, HasSubstr("<section id=\"caption-6\">"));
}

TEST(GalleryHtml, TinyPicturesCanBeShownAsPixels) {
  Gallery gallery = small_gallery();
  EXPECT_THAT(gallery_html(gallery), HasSubstr("<body>"));
  gallery.pixelated = true;
  EXPECT_THAT(gallery_html(gallery), HasSubstr("<body class=\"pixelated\">"));
}

TEST(GalleryHtml, IsWrittenAsIndex) {
  const testing::TempDirectory directory("gallery");
  write_gallery(directory.path(), small_gallery());
  EXPECT_EQ(read_file(directory / "index.html"), gallery_html(small_gallery()));
}

}  // namespace
}  // namespace dalle::generation

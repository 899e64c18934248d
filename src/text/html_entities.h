// The names of HTML 5's character references. The table is Python's own (html.entities.html5), written by
// scripts/build/html_entities.py when the project is built.
#pragma once

#include <span>
#include <string_view>

namespace dalle::text {

struct HtmlEntity {
  std::string_view name;  // "eacute;"; some are listed without the semicolon too
  std::string_view text;  // UTF-8
};

/// Sorted by the bytes of their names.
std::span<const HtmlEntity> html_entities();

}  // namespace dalle::text

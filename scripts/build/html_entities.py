#!/usr/bin/env python3
"""Writes the table of src/text/html_entities.h from Python's standard library: html_entities.py OUT.cpp

Called by CMake."""
import html.entities
import sys


def literal(text):
    """A C++ string literal of the UTF-8 bytes."""
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'


def main(path):
    entries = sorted(html.entities.html5.items(), key=lambda entry: entry[0].encode())
    lines = [f'    {{"{name}", {literal(text)}}},' for name, text in entries]
    with open(path, "w", encoding="ascii") as out:
        out.write("\n".join(['#include "html_entities.h"', "", "namespace dalle::text {", "",
                             "std::span<const HtmlEntity> html_entities() {",
                             "  static constexpr HtmlEntity kEntities[] = {", *lines, "  };", "  return kEntities;", "}", "",
                             "}  // namespace dalle::text", ""]))


if __name__ == "__main__":
    main(sys.argv[1])

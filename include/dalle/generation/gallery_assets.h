// The style sheet and the script of the gallery page, kept apart from the code that fills it.
#pragma once

#include <string_view>

namespace dalle::generation {

std::string_view gallery_style();
std::string_view gallery_script();

/// The viewer that the script fills, hidden until a picture is opened.
std::string_view gallery_viewer();

}  // namespace dalle::generation

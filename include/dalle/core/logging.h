// Log lines to the console and, once a run directory exists, to its log.txt. The only global state of the library.
#pragma once

#include <filesystem>
#include <string_view>

namespace dalle {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

void log_debug(std::string_view message);
void log_info(std::string_view message);
void log_warning(std::string_view message);
void log_error(std::string_view message);

/// Lowest level shown on the console (stderr). The log file takes all levels.
void set_console_level(LogLevel level);

/// Put before every later line of the console: "[rank 3] ".
void set_console_prefix(std::string_view prefix);

/// Appends all later lines, with time stamps, to `path`; an empty path closes the file. Throws FileError.
void set_log_file(const std::filesystem::path& path);

/// Erases the terminal's live progress line before a log line is printed, and lets it be redrawn afterwards.
/// Called by cli::ProgressLine; `erase` may be null.
void set_live_line_eraser(void (*erase)());

}  // namespace dalle

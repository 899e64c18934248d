// The only file that sees spdlog. It is compiled without LibTorch's include path (cmake/../src/CMakeLists.txt).
#include "dalle/core/logging.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <mutex>
#include <string>

#include "dalle/core/error.h"

namespace dalle {
namespace {

struct Loggers {
  Loggers() : console(std::make_shared<spdlog::logger>("console", std::make_shared<spdlog::sinks::stderr_sink_mt>())) {
    console->set_pattern("%v");
  }
  std::mutex mutex;
  std::shared_ptr<spdlog::logger> console;
  std::shared_ptr<spdlog::logger> file;
  std::string prefix;
  void (*erase)() = nullptr;
};

Loggers& loggers() {
  static Loggers instance;
  return instance;
}

spdlog::level::level_enum level_of(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

void log(LogLevel level, std::string_view message) {
  auto& all = loggers();
  const std::lock_guard lock(all.mutex);
  const char* kind = level == LogLevel::kWarning ? "warning: " : level == LogLevel::kError ? "error: " : "";
  const std::string text = all.prefix + kind + std::string(message);
  const auto spd_level = level_of(level);
  if (all.console->should_log(spd_level)) {
    if (all.erase != nullptr) all.erase();
    all.console->log(spd_level, "{}", text);
  }
  if (all.file) {
    all.file->log(spd_level, "{}", message);
    all.file->flush();
  }
}

}  // namespace

void log_debug(std::string_view message) { log(LogLevel::kDebug, message); }
void log_info(std::string_view message) { log(LogLevel::kInfo, message); }
void log_warning(std::string_view message) { log(LogLevel::kWarning, message); }
void log_error(std::string_view message) { log(LogLevel::kError, message); }

void set_console_prefix(std::string_view prefix) {
  auto& all = loggers();
  const std::lock_guard lock(all.mutex);
  all.prefix = prefix;
}

void set_console_level(LogLevel level) { loggers().console->set_level(level_of(level)); }

void set_log_file(const std::filesystem::path& path) {
  auto& all = loggers();
  const std::lock_guard lock(all.mutex);
  all.file.reset();
  if (path.empty()) return;
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path.string(), /*truncate=*/false);
    all.file = std::make_shared<spdlog::logger>("file", sink);
  } catch (const spdlog::spdlog_ex& error) {
    throw FileError("log file " + path.string() + ": " + error.what());
  }
  all.file->set_level(spdlog::level::debug);
  all.file->set_pattern("%Y-%m-%d %H:%M:%S.%e %-7l %v");
}

void set_live_line_eraser(void (*erase)()) {
  auto& all = loggers();
  const std::lock_guard lock(all.mutex);
  all.erase = erase;
}

}  // namespace dalle

#include "dalle/storage/run_checkpoints.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <functional>
#include <iomanip>
#include <optional>
#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/storage/manifest.h"

namespace dalle::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kTemporary = ".tmp-";

fs::path checkpoints_of(const fs::path& run_dir) { return run_dir / "checkpoints"; }

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// The step in "step-XXXXXXXX", or nothing for other names.
std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  return parse_number(name.substr(kPrefix.size()));
}

/// Name that `latest` points at, or "".
std::string latest_name(const fs::path& run_dir) {
  std::error_code error;
  return fs::read_symlink(checkpoints_of(run_dir) / "latest", error).filename().string();
}

/// True for NAME.tmp-PID (or NAME.tmp-PID.old) of a process that is gone.
bool is_abandoned(const std::string& name) {
  const size_t at = name.find(kTemporary);
  if (at == std::string::npos || !step_of(std::string_view(name).substr(0, at))) return false;
  std::string_view digits = std::string_view(name).substr(at + kTemporary.size());
  digits = digits.substr(0, digits.find('.'));
  const auto pid = parse_number(digits);
  if (!pid || *pid == 0 || *pid > std::numeric_limits<pid_t>::max()) return false;
  return ::kill(static_cast<pid_t>(*pid), 0) != 0 && errno == ESRCH;
}

/// The manifest goes first, so that a folder that is only half removed is not taken for whole.
void remove_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove(folder / kManifestName, error);
  fs::remove_all(folder, error);
  if (error) log_warning(str("cannot remove ", folder.string(), ": ", error.message()));
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  std::ostringstream out;
  out << kPrefix << std::setw(8) << std::setfill('0') << step;
  return out.str();
}

fs::path checkpoint_path(const fs::path& run_dir, int64_t step) {
  return checkpoints_of(run_dir) / checkpoint_name(step);
}

std::vector<std::string> list_checkpoints(const fs::path& run_dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(checkpoints_of(run_dir), error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (step_of(name) && entry->is_directory()) names.push_back(name);
  }
  std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) { return step_of(a) < step_of(b); });
  return names;
}

fs::path resolve_checkpoint(const fs::path& given) {
  std::error_code error;
  auto fail = [&](const std::string& got, const std::string& hint) {
    throw ConfigError(Problem{.place = given.string(),
                              .expected = str("a checkpoint folder (with ", kManifestName,
                                              "), a run directory (with checkpoints/latest) or a .safetensors file"),
                              .got = got,
                              .hint = hint});
  };
  if (!fs::exists(given, error)) fail("no such file or folder", "");
  if (fs::is_regular_file(given, error)) {
    if (given.extension() != ".safetensors")
      fail("another kind of file",
           "weights of other programs are converted first, by import-weights openai-dvae, openai-clip or open-clip");
    return given;
  }
  if (fs::exists(given / kManifestName, error)) return given;
  const fs::path latest = checkpoints_of(given) / "latest";
  if (fs::exists(latest / kManifestName, error)) return fs::canonical(latest);
  if (fs::is_symlink(latest, error)) {
    fail(str("checkpoints/latest, which points at ", latest_name(given), ", where there is no whole checkpoint"),
         "name another folder of checkpoints/");
  }
  fail("a folder with none of these", "the run may not have saved a checkpoint yet");
  return {};
}

void update_latest(const fs::path& run_dir, const std::string& name) {
  const fs::path folder = checkpoints_of(run_dir);
  const fs::path temporary = folder / str("latest.tmp-", ::getpid());
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_directory_symlink(name, temporary, error);
  if (!error) fs::rename(temporary, folder / "latest", error);
  if (error) throw FileError(str((folder / "latest").string(), ": cannot point it at ", name, ": ", error.message()));
  sync_directory(folder);
}

std::vector<std::string> leave_later_checkpoints(const fs::path& run_dir, const std::string& name) {
  update_latest(run_dir, name);  // first: whatever ends this process, a plain resume starts from there
  const fs::path folder = checkpoints_of(run_dir);
  std::vector<std::string> left;
  for (const auto& other : list_checkpoints(run_dir)) {
    if (step_of(other) <= step_of(name)) continue;
    std::string to = "left-" + other;
    for (int number = 2; fs::exists(folder / to); ++number) to = str("left-", other, ".", number);
    std::error_code error;
    fs::rename(folder / other, folder / to, error);
    if (error) throw FileError(str((folder / other).string(), ": cannot be renamed to ", to, ": ", error.message()));
    left.push_back(to);
  }
  sync_directory(folder);
  return left;
}

std::vector<std::string> prune_checkpoints(const fs::path& run_dir, int64_t keep_last,
                                           const std::vector<std::string>& keep) {
  const fs::path folder = checkpoints_of(run_dir);
  std::vector<std::string> removed;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (is_abandoned(name)) removed.push_back(name);
  }
  const std::vector<std::string> names = list_checkpoints(run_dir);
  const size_t kept = keep_last < 1 ? names.size() : std::min<size_t>(names.size(), static_cast<size_t>(keep_last));
  const std::string latest = latest_name(run_dir);
  for (size_t i = 0; i < names.size() - kept; ++i) {
    const bool wanted = names[i] == latest || std::find(keep.begin(), keep.end(), names[i]) != keep.end();
    if (!wanted) removed.push_back(names[i]);
  }
  for (const auto& name : removed) remove_folder(folder / name);
  return removed;
}

namespace {

/// Calls `read` with the run's checkpoints, `latest` first, then from the newest on, until one is intact; its folder.
fs::path first_intact(const fs::path& run_dir, const std::function<void(const fs::path&)>& read) {
  std::vector<std::string> names = list_checkpoints(run_dir);
  std::reverse(names.begin(), names.end());
  const auto latest = std::find(names.begin(), names.end(), latest_name(run_dir));
  if (latest != names.end()) std::rotate(names.begin(), latest, latest + 1);
  if (names.empty()) {
    throw ConfigError(Problem{.place = checkpoints_of(run_dir).string(),
                              .expected = "checkpoints of a run",
                              .got = "none",
                              .hint = "start without --resume"});
  }
  for (const auto& name : names) {
    const fs::path folder = checkpoints_of(run_dir) / name;
    try {
      read(folder);
      return folder;
    } catch (const CheckpointError& error) {
      log_warning(str("passing over a damaged checkpoint: ", error.what()));
    } catch (const FileError& error) {
      log_warning(str("passing over an unreadable checkpoint: ", error.what()));
    }
  }
  throw CheckpointError(Problem{.place = checkpoints_of(run_dir).string(),
                                .expected = "an intact checkpoint",
                                .got = str(names.size(), " damaged ones")});
}

}  // namespace

LoadedCheckpoint load_latest_good(const fs::path& run_dir, LoadParts parts) {
  LoadedCheckpoint loaded;
  loaded.folder =
      first_intact(run_dir, [&](const fs::path& folder) { loaded.checkpoint = load_checkpoint(folder, parts); });
  return loaded;
}

fs::path latest_good_folder(const fs::path& run_dir) { return first_intact(run_dir, verify_checkpoint); }

}  // namespace dalle::storage

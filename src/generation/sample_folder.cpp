#include "sample_folder.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFile = "unfinished.json";
constexpr const char* kLockName = ".lock";
constexpr const char* kFormat = "dalle.cpp unfinished samples";

std::string text_of(const RunDescription& run) {
  Json settings = Json::object();
  for (const auto& [name, value] : run) settings[name] = value;
  return Json{{"format", kFormat}, {"version", 1}, {"run", settings}}.dump(1, ' ', false,
                                                                           Json::error_handler_t::replace) +
         "\n";
}

std::map<std::string, std::string> read_run(const fs::path& path) {
  const Json json = Json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  const bool is_known = json.is_object() && json.contains("run") && json["run"].is_object() &&
                        json.contains("version") && json["version"] == 1 && json.contains("format") &&
                        json["format"] == kFormat;
  std::map<std::string, std::string> run;
  if (is_known) {
    for (const auto& [name, value] : json["run"].items()) run[name] = value.is_string() ? value.get<std::string>() : "";
    return run;
  }
  throw ConfigError(Problem{.place = path.string(),
                            .expected = "what an unfinished run is",
                            .got = "something that cannot be read",
                            .hint = "name another folder for --out"});
}

// What a kill left of files that were being written (core/files.h: AtomicFile).
void remove_temporaries(const fs::path& folder) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename().string().find(".tmp-") != std::string::npos) {
      found.push_back(entry.path());
    }
  }
  std::error_code ignored;
  for (const auto& path : found) fs::remove(path, ignored);
}

std::string shown(const std::string& value) { return value.size() <= 60 ? value : value.substr(0, 57) + "..."; }

}  // namespace

void SampleFolder::check(const fs::path& out) {
  std::error_code ignored;
  if (!fs::exists(out, ignored) || fs::exists(out / kFile, ignored)) return;
  const auto is_ours = [](const auto& entry) { return entry.path().filename() == kLockName; };
  if (fs::is_directory(out) && std::all_of(fs::directory_iterator(out), {}, is_ours)) return;
  throw ConfigError(Problem{.place = "--out " + out.string(),
                            .expected = "a folder that does not exist yet, is empty or holds an interrupted run",
                            .got = fs::is_directory(out) ? "one with files in it" : "a file",
                            .hint = "nothing is ever overwritten: name another folder"});
}

SampleFolder::SampleFolder(fs::path out, const RunDescription& run) : out_(std::move(out)) {
  check(out_);
  std::error_code error;
  fs::create_directories(out_, error);
  if (error) {
    throw FileError(Problem{.place = "--out " + out_.string(),
                            .expected = "a folder that can be made and written",
                            .got = error.message()});
  }
  lock_ = FileLock(out_ / kLockName, "--out " + out_.string(), "wait for that process, or name another folder");
  check(out_);  // another process may have been here before the lock
  goes_on_ = fs::exists(out_ / kFile);
  if (!goes_on_) {
    write_file(out_ / kFile, text_of(run));
    return;
  }
  const auto former = read_run(out_ / kFile);
  for (const auto& [name, value] : run) {
    const auto found = former.find(name);
    const std::string before = found == former.end() ? "nothing" : found->second;
    if (before == value) continue;
    throw ConfigError(Problem{.place = "--out " + out_.string(),
                              .expected = str("the interrupted run's ", name, ", ", shown(before)),
                              .got = shown(value),
                              .hint = "give the same settings to go on, or another folder"});
  }
  remove_temporaries(out_);
}

SampleFolder SampleFolder::of_first_rank(fs::path out) {
  SampleFolder folder;
  folder.out_ = std::move(out);
  if (fs::exists(folder.out_ / kFile)) return folder;
  throw FileError(Problem{.place = "--out " + folder.out_.string(),
                          .expected = "the folder that the first rank has made",
                          .got = "none",
                          .hint = "ranks on several machines need a file system that all of them see"});
}

void SampleFolder::finish() {
  std::error_code ignored;
  fs::remove(out_ / kFile, ignored);
  fs::remove(out_ / kLockName, ignored);
}

}  // namespace dalle::generation

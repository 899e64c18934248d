#include "picture_files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/transforms.h"

namespace dalle::generation {

namespace fs = std::filesystem;

namespace {

// A file that is there and begins as pictures do.
bool is_picture(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return false;
  std::ifstream stream(file, std::ios::binary);
  std::string begin(16, '\0');
  stream.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  return data::begins_like_picture(begin);
}

// May have no end.
bool is_device(const fs::path& file) {
  std::error_code ignored;
  return fs::is_character_file(file, ignored) || fs::is_block_file(file, ignored);
}

}  // namespace

void check_picture_files(const std::string& command, const std::vector<fs::path>& files) {
  if (files.empty()) {
    throw ConfigError(
        Problem{.place = command, .expected = "picture files", .got = "none", .hint = "see " + command + " --help"});
  }
  for (const auto& file : files) {
    if (fs::is_directory(file)) {
      throw ConfigError(Problem{.place = file.string(),
                                .expected = "a picture file",
                                .got = "a folder",
                                .hint = "name its pictures, for example " + (file / "*.png").string()});
    }
    if (!fs::exists(file)) {
      throw ConfigError(Problem{.place = file.string(), .expected = "a picture file", .got = "no such file"});
    }
    if (is_device(file)) {
      throw ConfigError(Problem{.place = file.string(), .expected = "a picture file", .got = "a device"});
    }
  }
}

void check_input_file(const std::string& flag, const fs::path& file) {
  std::error_code ignored;
  Problem problem{.place = flag + " " + file.string(), .expected = "a file"};
  if (!fs::exists(file, ignored)) {
    problem.got = "no such file";
  } else if (fs::is_directory(file, ignored)) {
    problem.got = "a folder";
  } else if (is_device(file)) {
    problem.got = "a device";
    problem.hint = "pipe it in, or write it to a file first";
  } else {
    return;
  }
  throw ConfigError(problem);
}

void check_output_file(const std::string& flag, const fs::path& file) {
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  std::error_code ignored;
  Problem problem{.place = flag + " " + file.string(), .expected = "a file in a folder that can be written"};
  if (fs::is_directory(file, ignored)) {
    problem.got = "a folder";
    problem.hint = "name a file in it, for example " + (file / "scores.json").string();
  } else if (!fs::is_directory(folder, ignored)) {
    problem.got = "no folder " + folder.string();
    problem.hint = "make it first";
  } else if (is_picture(file)) {
    problem.got = "a picture";
    problem.hint = "it would be overwritten: " + flag + " takes the name of a file of its own";
  } else if (::access(folder.c_str(), W_OK) != 0) {
    problem.got = std::error_code(errno, std::generic_category()).message();
  } else {
    return;
  }
  throw ConfigError(problem);
}

Tensor read_picture(const fs::path& path) {
  try {
    return data::decode_picture(read_file(path));
  } catch (const DataError& error) {
    throw DataError(path.string() + ": " + error.what());
  }
}

Tensor load_picture(const fs::path& path, int64_t size, data::ResizeFilter filter) {
  const Tensor decoded = read_picture(path);
  const int64_t height = decoded.size(0), width = decoded.size(1);
  if (std::min(height, width) < size) {
    throw DataError(Problem{.place = path.string(),
                            .expected = str("a shorter side of at least ", size, " pixels"),
                            .got = str(width, " x ", height, " (width x height)"),
                            .hint = "leave it out, or give a smaller --size"});
  }
  const data::TransformOptions transform{.image_size = size, .filter = filter};
  return data::transform_picture(decoded, transform, {});
}

void check_output_folder(const fs::path& out) {
  if (!fs::exists(out)) return;
  if (fs::is_directory(out) && fs::is_empty(out)) return;
  throw ConfigError(Problem{.place = "--out " + out.string(),
                            .expected = "a folder that does not exist yet or is empty",
                            .got = fs::is_directory(out) ? "one with files in it" : "a file",
                            .hint = "nothing is ever overwritten: name another folder"});
}

OutputFolder::OutputFolder(fs::path out) : out_(std::move(out)), was_there_(fs::exists(out_)) {
  hidden_ = out_ / str(".unfinished-", ::getpid());
  std::error_code error;
  fs::create_directories(hidden_, error);
  if (!error) return;
  if (!was_there_) {
    std::error_code ignored;
    fs::remove(out_, ignored);
  }
  throw FileError(Problem{
      .place = "--out " + out_.string(), .expected = "a folder that can be made and written", .got = error.message()});
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  fs::remove_all(hidden_, ignored);
  if (!was_there_) fs::remove(out_, ignored);  // stays where results are in it
}

void OutputFolder::commit() {
  for (const auto& entry : fs::directory_iterator(hidden_)) {
    std::error_code error;
    fs::rename(entry.path(), out_ / entry.path().filename(), error);
    if (error) {
      throw FileError(Problem{.place = out_.string(), .expected = "", .got = "cannot write: " + error.message()});
    }
  }
}

}  // namespace dalle::generation

// Where captioned pictures come from: an indexed, read-only list of samples.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace dalle::data {

struct RawSample {
  std::string key;
  std::string picture;                // the file's bytes, not decoded
  std::vector<std::string> captions;  // at least one; valid UTF-8, as written
};

/// What a source found when it was opened. Each problem was also logged, the first few of a kind by name.
struct SourceReport {
  int64_t num_samples = 0;            // usable
  int64_t num_cut_short = 0;          // entries that their shard does not hold whole
  int64_t num_without_picture = 0;    // a caption only
  int64_t num_without_caption = 0;    // a picture only, or empty captions
  int64_t num_bad_captions = 0;       // caption files that are not UTF-8 or not the JSON expected
  int64_t num_duplicates = 0;         // later entries of a key that already has one of their kind
  std::vector<std::string> problems;  // one line each: file, key, what is wrong; at most 20 of a kind
};

/// Implementations may be read by many threads at once.
class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t size() const = 0;
  /// Throws DataError or FileError where the picture can no longer be read.
  virtual RawSample read(int64_t index) const = 0;
  /// The captions alone, without reading the picture.
  virtual const std::vector<std::string>& captions(int64_t index) const = 0;
  /// For messages: the file and the key of a sample.
  virtual std::string place(int64_t index) const = 0;
  virtual std::string name() const = 0;
  virtual const SourceReport& report() const = 0;
};

struct SourceConfig {
  std::filesystem::path path;
  int64_t max_samples = 0;

  static void visit_fields(auto& self, auto&& field) {
    field("path", self.path,
          "tar shards: one file, a folder of .tar files, or a pattern such as shards/{000..031}.tar or shards/*.tar",
          {.changeable = true});
    field("max_samples", self.max_samples, "use the first samples only; 0 = all", {.min = 0, .unit = "samples"});
  }
};

/// Opens and indexes a source. Throws ConfigError where the path does not exist or names no shard, DataError where it
/// holds no usable sample.
std::unique_ptr<Source> open_source(const SourceConfig& config);

/// The files that a path with {a..b}, {a,b}, *, ? or [...] stands for, in order; a folder stands for its .tar files.
/// Throws ConfigError where one does not exist.
std::vector<std::filesystem::path> expand_shards(const std::filesystem::path& pattern);

}  // namespace dalle::data

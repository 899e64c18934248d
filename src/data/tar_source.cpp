#include "dalle/data/tar_source.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <unordered_map>
#include <utility>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/data/captions.h"
#include "dalle/data/tar_reader.h"

namespace dalle::data {
namespace {

constexpr size_t kNamedProblems = 20;  // of a kind

enum class FileKind { kPicture, kCaptionLines, kCaptionJson, kOther };

struct EntryName {
  std::string key;
  FileKind kind = FileKind::kOther;
};

/// WebDataset: the key is the path up to the first dot after the last slash, the rest is the kind.
EntryName split_name(std::string_view name) {
  if (name.starts_with("./")) name.remove_prefix(2);
  const size_t slash = name.rfind('/');
  const size_t base = slash == std::string_view::npos ? 0 : slash + 1;
  const size_t dot = name.find('.', base);
  if (dot == std::string_view::npos || dot == base) return {};  // no extension, or a hidden file
  std::string extension(name.substr(dot + 1));
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  EntryName result{.key = std::string(name.substr(0, dot))};
  constexpr std::array<std::string_view, 4> kPictures{"png", "jpg", "jpeg", "webp"};
  if (std::find(kPictures.begin(), kPictures.end(), extension) != kPictures.end()) result.kind = FileKind::kPicture;
  if (extension == "txt") result.kind = FileKind::kCaptionLines;
  if (extension == "json") result.kind = FileKind::kCaptionJson;
  return result;
}

struct Picture {
  size_t shard = 0;
  int64_t offset = -1;  // -1: `bytes` holds it
  int64_t size = 0;
  std::string bytes;
};

struct Sample {
  std::string key;
  Picture picture;
  std::vector<std::string> captions;
};

/// What one shard says about a key, until the shard has been read to its end.
struct Pending {
  std::string key;
  std::optional<Picture> picture;
  std::optional<ParsedCaptions> lines;
  std::optional<ParsedCaptions> json;
  bool cut_short = false;
};

class TarSource : public Source {
 public:
  TarSource(std::vector<std::filesystem::path> shards, int64_t max_samples)
      : shards_(std::move(shards)), max_samples_(max_samples) {
    for (size_t shard = 0; shard < shards_.size() && !is_full(); ++shard) index_shard(shard);
    report_.num_samples = size();
    finish_report();
  }

  int64_t size() const override { return static_cast<int64_t>(samples_.size()); }

  RawSample read(int64_t index) const override {
    const Sample& sample = samples_.at(static_cast<size_t>(index));
    const Picture& picture = sample.picture;
    const bool in_memory = picture.offset < 0;
    return {sample.key, in_memory ? picture.bytes : read_range(shards_[picture.shard], picture.offset, picture.size),
            sample.captions};
  }

  const std::vector<std::string>& captions(int64_t index) const override {
    return samples_.at(static_cast<size_t>(index)).captions;
  }

  std::string place(int64_t index) const override {
    const Sample& sample = samples_.at(static_cast<size_t>(index));
    return str(shards_[sample.picture.shard].string(), ": ", sample.key);
  }

  std::string name() const override {
    return shards_.size() == 1 ? shards_[0].string() : str(shards_[0].string(), " and ", shards_.size() - 1, " more");
  }

  const SourceReport& report() const override { return report_; }

 private:
  bool is_full() const { return max_samples_ > 0 && size() >= max_samples_; }

  void index_shard(size_t shard) {
    std::vector<Pending> pending;
    std::unordered_map<std::string, size_t> by_key;
    const auto wants_content = [](std::string_view name) {
      const FileKind kind = split_name(name).kind;
      return kind == FileKind::kCaptionLines || kind == FileKind::kCaptionJson;
    };
    const TarWalk walk = walk_tar(shards_[shard], wants_content, [&](TarEntry&& entry) {
      const EntryName name = split_name(entry.name);
      if (name.kind == FileKind::kOther) return;
      const auto [found, inserted] = by_key.emplace(name.key, pending.size());
      if (inserted) pending.push_back({.key = name.key});
      add_entry(shard, name, std::move(entry), pending[found->second]);
    });
    if (!walk.problem.empty()) {
      log_warning(
          str(shards_[shard].string(), ": ", walk.problem, "; using the ", walk.num_entries, " entries before"));
      report_.problems.push_back(str(shards_[shard].string(), ": ", walk.problem));
    }
    if (walk.compressed) {
      log_info(str(shards_[shard].string(), ": compressed, so its pictures are kept in memory"));
    }
    for (auto& item : pending) {
      if (is_full()) return;
      take(shard, std::move(item));
    }
  }

  void add_entry(size_t shard, const EntryName& name, TarEntry&& entry, Pending& pending) {
    if (entry.missing > 0) {
      pending.cut_short = true;
      problem(report_.num_cut_short, shard, name.key,
              str(entry.name, " is cut short, ", entry.missing, " bytes are missing"));
      return;
    }
    const bool duplicate = name.kind == FileKind::kPicture        ? pending.picture.has_value()
                           : name.kind == FileKind::kCaptionLines ? pending.lines.has_value()
                                                                  : pending.json.has_value();
    if (duplicate) {
      problem(report_.num_duplicates, shard, name.key, str("a second ", entry.name, ", the first is used"));
    } else if (name.kind == FileKind::kPicture) {
      pending.picture = Picture{shard, entry.offset, entry.size, std::move(entry.content)};
    } else if (name.kind == FileKind::kCaptionLines) {
      pending.lines = parse_caption_lines(entry.content);
    } else {
      pending.json = parse_caption_json(entry.content);
    }
  }

  /// Turns a complete key into a sample, or counts what is wrong with it. Captions come from .txt where there is one:
  /// the .json beside it is often metadata.
  void take(size_t shard, Pending&& item) {
    if (item.cut_short) return;
    auto& chosen = item.lines ? item.lines : item.json;
    if (!item.picture) {
      problem(report_.num_without_picture, shard, item.key, "no picture");
    } else if (chosen && !chosen->problem.empty()) {
      problem(report_.num_bad_captions, shard, item.key, str("caption file: ", chosen->problem));
    } else if (!chosen || chosen->captions.empty()) {
      problem(report_.num_without_caption, shard, item.key, "no caption");
    } else {
      samples_.push_back({std::move(item.key), std::move(*item.picture), std::move(chosen->captions)});
    }
  }

  /// Counts a problem and, for the first of its kind, names it.
  void problem(int64_t& count, size_t shard, const std::string& key, const std::string& what) {
    if (++count > static_cast<int64_t>(kNamedProblems)) return;
    const std::string line = str(shards_[shard].string(), ": ", key, ": ", what);
    log_warning(line);
    report_.problems.push_back(line);
  }

  void finish_report() {
    const auto skipped =
        report_.num_cut_short + report_.num_without_picture + report_.num_without_caption + report_.num_bad_captions;
    if (skipped + report_.num_duplicates > 0) {
      log_warning(str(name(), ": ", size(), " usable samples; ", report_.num_cut_short, " cut short, ",
                      report_.num_without_picture, " without picture, ", report_.num_without_caption,
                      " without caption, ", report_.num_bad_captions, " with unreadable captions, ",
                      report_.num_duplicates, " duplicates"));
    }
    if (size() > 0) return;
    throw DataError(
        Problem{.place = name(),
                .expected = "at least one picture (png, jpg, webp) with a caption (txt, json) of the same name",
                .got = report_.problems.empty() ? "no such pair" : report_.problems.front(),
                .hint = "docs/data_formats.md describes the shards"});
  }

  std::vector<std::filesystem::path> shards_;
  int64_t max_samples_;
  std::vector<Sample> samples_;
  SourceReport report_;
};

}  // namespace

std::unique_ptr<Source> open_tar_source(const std::vector<std::filesystem::path>& shards, int64_t max_samples) {
  return std::make_unique<TarSource>(shards, max_samples);
}

}  // namespace dalle::data

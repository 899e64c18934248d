#include "dalle/storage/manifest.h"

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "input_file.h"
#include "json.h"

namespace dalle::storage {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& expected, const std::string& got,
                       const std::string& hint) {
  throw CheckpointError(Problem{.place = path.string(), .expected = expected, .got = got, .hint = hint});
}

constexpr const char* kDamaged = "the checkpoint is damaged; use another one or copy it again";

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

void check_present(const std::filesystem::path& folder, const ManifestEntry& entry) {
  const auto path = folder / entry.name;
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) fail(path, str(entry.bytes, " bytes"), "no such file", kDamaged);
  const auto size = std::filesystem::file_size(path, error);
  if (error || size != entry.bytes) fail(path, str(entry.bytes, " bytes"), str(size, " bytes"), kDamaged);
}

Json json_of(const std::vector<ManifestEntry>& files) {
  Json json = Json::object();
  for (const auto& [name, bytes, checksum] : files) json[name] = {{"bytes", bytes}, {"xxh3_128", checksum}};
  return json;
}

std::vector<ManifestEntry> entries_of(const Json& files, const std::string& place) {
  std::vector<ManifestEntry> entries;
  for (const auto& [name, entry] : files.items()) {
    if (!is_plain_name(name)) fail(place, "plain file names", str("'", name, "'"), kDamaged);
    const int64_t bytes = require_integer(entry, "bytes", str(place, " (", name, ")"));
    if (bytes < 0) fail(place, str("a size of ", name, " >= 0"), str(bytes), kDamaged);
    entries.push_back({name, static_cast<uint64_t>(bytes), require_string(entry, "xxh3_128", place)});
  }
  return entries;
}

}  // namespace

const ManifestEntry* Manifest::find(const std::string& name) const {
  for (const auto& entry : files) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string file_checksum(const std::filesystem::path& path) {
  const InputFile input(path);
  std::string piece(std::min<uint64_t>(input.size(), 4 << 20), '\0');
  Hasher hasher;
  for (uint64_t offset = 0; offset < input.size(); offset += piece.size()) {
    piece.resize(std::min<uint64_t>(piece.size(), input.size() - offset));
    input.read_at(offset, std::as_writable_bytes(std::span(piece)));
    hasher.update(piece);
  }
  return hasher.hex();
}

ManifestEntry measure_file(const std::filesystem::path& folder, const std::string& name) {
  return {name, InputFile(folder / name).size(), file_checksum(folder / name)};
}

void write_manifest(const std::filesystem::path& folder, const std::string& format, int64_t format_version,
                    const std::vector<std::string>& names) {
  std::vector<ManifestEntry> files;
  for (const auto& name : names) files.push_back(measure_file(folder, name));
  write_manifest_of(folder, format, format_version, files);
}

void write_manifest_of(const std::filesystem::path& folder, const std::string& format, int64_t format_version,
                       const std::vector<ManifestEntry>& files) {
  const Json json = {{"format", format}, {"format_version", format_version}, {"files", json_of(files)}};
  const auto path = folder / kManifestName;
  write_file(path, dump_json(json, path.string(), 2) + "\n");
}

std::string manifest_text(const std::vector<ManifestEntry>& files) {
  return files.empty() ? "" : dump_json(json_of(files), "manifest");
}

std::vector<ManifestEntry> parse_manifest_text(const std::string& text, const std::string& place) {
  return text.empty() ? std::vector<ManifestEntry>{} : entries_of(parse_json(text, place), place);
}

Manifest read_manifest(const std::filesystem::path& folder, const std::string& format, int64_t format_version) {
  const auto path = folder / kManifestName;
  const std::string place = path.string();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    fail(path, "a manifest", "no such file", "this is not a checkpoint, or writing it was cut off");
  }
  const Json json = parse_json(read_file(path), place);
  Manifest manifest;
  manifest.format = require_string(json, "format", place);
  if (manifest.format != format) fail(path, str("format '", format, "'"), str("'", manifest.format, "'"), "");
  manifest.format_version = require_integer(json, "format_version", place);
  if (manifest.format_version != format_version) {
    fail(path, str("format version ", format_version), str(manifest.format_version),
         "it was written by another version of dalle.cpp");
  }
  const Json& files = require_object(json, "files", place);
  manifest.files = entries_of(files, place);
  for (const auto& entry : manifest.files) check_present(folder, entry);
  return manifest;
}

void verify_checksum(const std::filesystem::path& folder, const ManifestEntry& entry) {
  const std::string got = file_checksum(folder / entry.name);
  if (got != entry.checksum) fail(folder / entry.name, "checksum " + entry.checksum, got, kDamaged);
}

}  // namespace dalle::storage

// MANIFEST.json: size and checksum of every file of a folder. It is written last, so a folder without one is not whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace dalle::storage {

inline constexpr const char* kManifestName = "MANIFEST.json";

struct ManifestEntry {
  std::string name;  // a plain file name
  uint64_t bytes = 0;
  std::string checksum;  // XXH3-128, as `xxhsum -H2` prints it
};

struct Manifest {
  std::string format;  // "dalle-checkpoint"
  int64_t format_version = 0;
  std::vector<ManifestEntry> files;

  const ManifestEntry* find(const std::string& name) const;
};

/// Checksum of a file, read in pieces. Throws FileError.
std::string file_checksum(const std::filesystem::path& path);

/// Measures the files `names` of `folder` and writes the manifest. Throws FileError.
void write_manifest(const std::filesystem::path& folder, const std::string& format, int64_t format_version,
                    const std::vector<std::string>& names);

/// The same from entries that are known.
void write_manifest_of(const std::filesystem::path& folder, const std::string& format, int64_t format_version,
                       const std::vector<ManifestEntry>& files);
/// Measures a file. Throws FileError.
ManifestEntry measure_file(const std::filesystem::path& folder, const std::string& name);

/// Entries as a line, to be sent to another process, and back. "" is none. Throws CheckpointError, naming `place`.
std::string manifest_text(const std::vector<ManifestEntry>& files);
std::vector<ManifestEntry> parse_manifest_text(const std::string& text, const std::string& place);

/// Reads the manifest and checks that each listed file is there with its size. Throws CheckpointError naming the file,
/// what was expected and what is there; also for another format or version and for names that are not plain.
Manifest read_manifest(const std::filesystem::path& folder, const std::string& format, int64_t format_version);

/// Throws CheckpointError where the file's checksum is not the manifest's.
void verify_checksum(const std::filesystem::path& folder, const ManifestEntry& entry);

}  // namespace dalle::storage

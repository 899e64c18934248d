#include "dalle/storage/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "checkpoint_state.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/storage/base64.h"
#include "dalle/storage/identity.h"
#include "dalle/storage/manifest.h"
#include "dalle/storage/safetensors.h"

namespace dalle::storage {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "dalle-checkpoint";
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kEmaFile = "ema.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kTokenizerFile = "tokenizer.model";
constexpr const char* kStateFile = "state.json";
constexpr const char* kStateKey = "dalle.state";
constexpr const char* kTokenizerKey = "dalle.tokenizer";

constexpr uint64_t kHeaderBytes = 256;  // per tensor, generously

void make_empty(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  fs::create_directories(folder, error);
  if (error) throw FileError(str(folder.string(), ": cannot create the folder: ", error.message()));
}

/// A folder that is removed again unless it was renamed into place.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(fs::path path) : path_(std::move(path)) { make_empty(path_); }
  ~TemporaryFolder() {
    std::error_code ignored;  // what stays behind has a temporary name and is removed by prune_checkpoints
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// Renames `from` to `to`. Where `to` exists the two are exchanged in one step, so that `from` then names the old folder.
void rename_into_place(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
  if (errno == EEXIST && ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS) {
    throw FileError(str(to.string(), ": cannot rename ", from.string(), " to it: ", std::strerror(errno)));
  }
  // File systems without these flags (NFS): an old folder is moved aside first.
  std::error_code error;
  const fs::path aside = from.string() + ".old";
  if (fs::exists(to)) fs::rename(to, aside, error);
  if (!error) {
    fs::rename(from, to, error);
    std::error_code ignored;
    if (error) fs::rename(aside, to, ignored);
  }
  if (error) throw FileError(str(to.string(), ": cannot rename ", from.string(), " to it: ", error.message()));
  fs::remove_all(aside, error);
}

uint64_t bytes_of(const std::vector<NamedTensor>& tensors) {
  uint64_t bytes = 0;
  for (const auto& entry : tensors) bytes += entry.tensor.nbytes() + kHeaderBytes + entry.name.size();
  return bytes;
}

void check_disk(const fs::path& parent, const fs::path& folder, uint64_t bytes) {
  constexpr uint64_t kSlack = 1 << 20;
  const uint64_t needed = bytes + kSlack;
  const uint64_t available = free_disk_bytes(parent);
  if (available >= needed) return;
  throw FileError(Problem{.place = folder.string(),
                          .expected = str(needed, " free bytes for the checkpoint"),
                          .got = str(available, " (", needed - available, " bytes missing)"),
                          .hint = "free some space; earlier checkpoints are untouched"});
}

std::vector<NamedTensor> read_tensors(const fs::path& folder, const Manifest& manifest, const std::string& kind) {
  if (const ManifestEntry* entry = manifest.find(kind + ".safetensors")) {
    verify_checksum(folder, *entry);
    return read_safetensors(folder / entry->name).tensors;
  }
  const TensorFiles files(folder, manifest, kind);
  files.verify();
  return files.read_all();
}

std::string read_text(const fs::path& folder, const Manifest& manifest, const char* name) {
  const ManifestEntry* entry = manifest.find(name);
  if (entry == nullptr) return "";
  verify_checksum(folder, *entry);
  return read_file(folder / name);
}

bool is_model_part(const ManifestEntry& entry) { return entry.name.starts_with("model-"); }

Manifest require_manifest(const fs::path& folder) {
  Manifest manifest = read_manifest(folder, kFormat, kCheckpointFormatVersion);
  for (const char* name : {kModelFile, kStateFile}) {
    const bool is_in_parts = std::string_view(name) == kModelFile &&
                             std::any_of(manifest.files.begin(), manifest.files.end(), is_model_part);
    if (is_in_parts || manifest.find(name) != nullptr) continue;
    throw CheckpointError(
        Problem{.place = (folder / kManifestName).string(), .expected = str("an entry for ", name), .got = "none"});
  }
  return manifest;
}

Checkpoint load_folder(const fs::path& folder, LoadParts parts) {
  const Manifest manifest = require_manifest(folder);
  Checkpoint checkpoint = parse_state(read_text(folder, manifest, kStateFile), (folder / kStateFile).string());
  checkpoint.tokenizer = read_text(folder, manifest, kTokenizerFile);
  if (parts == LoadParts::kTexts) return checkpoint;
  if (parts != LoadParts::kModel) checkpoint.ema = read_tensors(folder, manifest, "ema");
  if (parts != LoadParts::kEvaluation || checkpoint.ema.empty()) {
    checkpoint.model = read_tensors(folder, manifest, "model");
  }
  if (parts == LoadParts::kAll) checkpoint.optimizer = read_tensors(folder, manifest, "optimizer");
  if (manifest.find(kModelFile) != nullptr) return checkpoint;
  // No rank that wrote parts had all tensors to tell their identity.
  for (const auto& [name, tensors] : {std::pair{"model", &checkpoint.model}, std::pair{"ema", &checkpoint.ema}}) {
    if (tensors->empty() || checkpoint.identities.contains(name)) continue;
    checkpoint.identities[name] = model_identity(checkpoint.model_config_yaml, *tensors);
  }
  return checkpoint;
}

Checkpoint bare_state(const std::map<std::string, std::string>& metadata, const std::string& place) {
  const auto state = metadata.find(kStateKey);
  if (state == metadata.end()) {
    throw CheckpointError(Problem{.place = place,
                                  .expected = str("'", kStateKey, "' in the metadata"),
                                  .got = "none",
                                  .hint = "for weights of other programs see import-weights --help"});
  }
  Checkpoint checkpoint = parse_state(state->second, str(place, " (", kStateKey, ")"));
  if (const auto tokenizer = metadata.find(kTokenizerKey); tokenizer != metadata.end()) {
    const auto bytes = decode_base64(tokenizer->second);
    if (!bytes) {
      throw CheckpointError(Problem{.place = str(place, " (", kTokenizerKey, ")"),
                                    .expected = "base64",
                                    .got = str("'", tokenizer->second.substr(0, 40), "...'")});
    }
    checkpoint.tokenizer = *bytes;
  }
  return checkpoint;
}

fs::path target_of(const fs::path& folder) {
  const fs::path target = fs::absolute(folder).lexically_normal();
  return target.has_filename() ? target : target.parent_path();  // "FOLDER/"
}

fs::path temporary_of(const fs::path& target) { return str(target.string(), ".tmp-", ::getpid()); }

}  // namespace

fs::path begin_checkpoint(const fs::path& folder) {
  const fs::path begun = temporary_of(target_of(folder));
  make_empty(begun);
  return begun;
}

std::vector<ManifestEntry> write_part(const fs::path& begun, const CheckpointPart& part) {
  std::vector<std::pair<const char*, const std::vector<TensorPiece>*>> kinds{{"model", &part.model},
                                                                             {"optimizer", &part.optimizer}};
  if (part.ema) kinds.emplace_back("ema", &*part.ema);
  uint64_t bytes = 0;
  for (const auto& [kind, pieces] : kinds) {
    for (const auto& piece : *pieces) bytes += piece.values.nbytes() + kHeaderBytes + 2 * piece.name.size();
  }
  check_disk(begun, begun, bytes);
  std::vector<ManifestEntry> files;
  for (const auto& [kind, pieces] : kinds) {
    const std::string name = part_file_name(kind, part.number, part.num_parts);
    write_pieces(begun / name, *pieces);
    files.push_back(measure_file(begun, name));
  }
  return files;
}

void finish_checkpoint(const fs::path& begun, const fs::path& folder, const Checkpoint& checkpoint,
                       const std::vector<ManifestEntry>& files) {
  const fs::path target = target_of(folder);
  std::vector<ManifestEntry> all = files;
  const auto write = [&](const char* name, const std::string& text) {
    write_file(begun / name, text);
    all.push_back(measure_file(begun, name));
  };
  if (!checkpoint.tokenizer.empty()) write(kTokenizerFile, checkpoint.tokenizer);
  write(kStateFile, state_text(checkpoint, (target / kStateFile).string()));
  write_manifest_of(begun, kFormat, kCheckpointFormatVersion, all);
  sync_directory(begun);
  rename_into_place(begun, target);
  sync_directory(target.parent_path());
  std::error_code ignored;  // an older checkpoint of this name, exchanged for the new one
  fs::remove_all(begun, ignored);
}

TensorFiles checkpoint_tensors(const fs::path& folder, const std::string& kind) {
  return {folder, require_manifest(folder), kind};
}

void save_checkpoint(const fs::path& folder, const Checkpoint& checkpoint) {
  const fs::path target = target_of(folder);
  const fs::path parent = target.parent_path();
  const TemporaryFolder temporary(temporary_of(target));
  check_disk(parent, target,
             bytes_of(checkpoint.model) + bytes_of(checkpoint.ema) + bytes_of(checkpoint.optimizer) +
                 checkpoint.tokenizer.size() + checkpoint.config_yaml.size() + checkpoint.model_config_yaml.size());
  std::vector<std::string> names;
  auto place_of = [&](const char* name) { return temporary.path() / names.emplace_back(name); };
  write_safetensors(place_of(kModelFile), {checkpoint.model, {}});
  if (!checkpoint.ema.empty()) write_safetensors(place_of(kEmaFile), {checkpoint.ema, {}});
  if (!checkpoint.optimizer.empty()) write_safetensors(place_of(kOptimizerFile), {checkpoint.optimizer, {}});
  if (!checkpoint.tokenizer.empty()) write_file(place_of(kTokenizerFile), checkpoint.tokenizer);
  write_file(place_of(kStateFile), state_text(checkpoint, (target / kStateFile).string()));
  write_manifest(temporary.path(), kFormat, kCheckpointFormatVersion, names);
  sync_directory(temporary.path());
  rename_into_place(temporary.path(), target);
  sync_directory(parent);
}

Checkpoint load_checkpoint(const fs::path& folder_or_file, LoadParts parts) {
  std::error_code error;
  if (fs::is_directory(folder_or_file, error)) return load_folder(folder_or_file, parts);
  SafetensorsFile file = read_safetensors(folder_or_file);
  Checkpoint checkpoint = bare_state(file.metadata, folder_or_file.string());
  checkpoint.model = std::move(file.tensors);
  return checkpoint;
}

void verify_checkpoint(const fs::path& folder_or_file) {
  std::error_code error;
  if (!fs::is_directory(folder_or_file, error)) {
    bare_state(read_safetensors_header(folder_or_file).metadata, folder_or_file.string());
    return;
  }
  const Manifest manifest = require_manifest(folder_or_file);
  for (const auto& entry : manifest.files) verify_checksum(folder_or_file, entry);
  parse_state(read_file(folder_or_file / kStateFile), (folder_or_file / kStateFile).string());
}

void write_bare_checkpoint(const fs::path& path, const Checkpoint& checkpoint) {
  SafetensorsFile file{checkpoint.evaluation_weights(), {{kStateKey, state_text(checkpoint, path.string())}}};
  if (!checkpoint.tokenizer.empty()) file.metadata[kTokenizerKey] = encode_base64(checkpoint.tokenizer);
  write_safetensors(path, file);
}

}  // namespace dalle::storage
